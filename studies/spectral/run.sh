# The study of studies/spectral/README.md, resumable: hours on two cores. Run it as `make spectral-study`, in several shells
# at once to share the work. Its tables are then in studies/spectral/tables.md.
set -e
python studies/spectral/gaussian.py > runs/spectral-gaussian.md
mv runs/spectral-gaussian.md studies/spectral/gaussian.md
snrkit sweep studies/spectral/told-digits.yaml
for sweep in bias digits photos-16 photos-32 photos-64; do
  snrkit sweep studies/spectral/spectral-$sweep.yaml
done
if [ -e data/cifar10-train.zip ]; then   # see studies/spectral/cifar10.yaml
  snrkit sweep studies/spectral/spectral-cifar10.yaml
  snrkit sweep studies/spectral/told-cifar10.yaml
fi
python studies/spectral/told.py runs > runs/spectral-told.md
mv runs/spectral-told.md studies/spectral/told.md
python studies/spectral/tables.py runs > runs/spectral-tables.md
mv runs/spectral-tables.md studies/spectral/tables.md
