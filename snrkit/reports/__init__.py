"""What people read: pages and tables made of records."""
