# The study of studies/training/README.md, resumable: hours on two cores. Run it as `make training-study`, in several shells at
# once to share the work. Its tables are then in studies/training/tables.md.
set -e
here=studies/training
for sweep in training-knobs levels beta-tables averages x0-weightings clipping clipping-10 vp-levels flow-levels rates x0-rates \
  target-samplers targets score haar qk convergence gradients posterior-mean; do
  snrkit sweep $here/$sweep.yaml
done
for run in runs/targets-*-? runs/training-knobs-edm-edm-?; do   # excess errors, what a classifier reads
  snrkit analyze --config "$run/config.yaml"
done
python $here/gradients.py runs > $here/gradients.md
python $here/tables.py runs > runs/training-tables.md   # stops where another shell is still at work
mv runs/training-tables.md studies/training/tables.md
