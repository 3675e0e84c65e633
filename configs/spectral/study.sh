# The study of docs/spectral-study.md, resumable: hours on two cores. Run it as `make spectral-study`, in several shells
# at once to share the work. Its tables are then in docs/spectral-tables.md.
set -e
python configs/spectral/gaussian.py > runs/spectral-gaussian.md
mv runs/spectral-gaussian.md docs/spectral-gaussian.md
for sweep in bias digits photos-16 photos-32 photos-64; do
  snrkit sweep configs/sweeps/spectral-$sweep.yaml
done
if [ -e data/cifar10-train.zip ]; then   # see configs/spectral/cifar10.yaml
  snrkit sweep configs/sweeps/spectral-cifar10.yaml
fi
python configs/spectral/tables.py runs > runs/spectral-tables.md
mv runs/spectral-tables.md docs/spectral-tables.md
