"""Reads back what loggers wrote, by means of their own formats."""

import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK = 32768  # bytes, in which W&B's files and LevelDB's logs are written
WHOLE, LAST = 1, 4  # kinds of a chunk


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder itself: (step, value) in order, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def pictures(folder: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    """What TensorBoard shows of its pictures: (step, pixels) in order, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"images": 0}).Reload()
    return {
        tag: [(e.step, np.asarray(Image.open(io.BytesIO(e.encoded_image_string)))) for e in found.Images(tag)]
        for tag in found.Tags()["images"]
    }


def chunks(content: bytes):
    """The chunks of a file of W&B: (kind, bytes)."""
    place = 7  # behind the file's own head
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        yield kind, content[place + 7 : place + 7 + length]
        place += 7 + length


def wandb_records(path: Path):
    """The records of one file of W&B."""
    from wandb.proto.wandb_internal_pb2 import Record

    whole = b""
    for kind, part in chunks(path.read_bytes()):
        whole += part
        if kind in (WHOLE, LAST):
            yield Record.FromString(whole)
            whole = b""


def wandb_files(folder: Path) -> list[Path]:
    """The files of W&B in a folder, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def wandb_rows(folder: Path) -> list[dict]:
    """Rows of the history in all files of W&B, without what W&B adds; tables and pictures are mappings."""
    rows: list[dict] = []
    for path in wandb_files(folder):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                rows.append({})
                for item in record.history.item:
                    name, *within = item.nested_key or [item.key]
                    if within:
                        rows[-1].setdefault(name, {})[within[0]] = json.loads(item.value_json)
                    elif not name.startswith("_"):
                        rows[-1][name] = json.loads(item.value_json)
    return rows
