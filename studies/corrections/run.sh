# The study of studies/corrections/README.md, resumable: hours on two cores. Run it as `make corrections-study`.
# Its tables are then in studies/corrections/tables.md.
set -e
here=studies/corrections
for family in edm ddpm flow perturbed first-half fine-tuned; do
  snrkit train --config $here/$family.yaml
done
for family in edm ddpm flow perturbed fine-tuned; do
  snrkit fit-estimator --config $here/$family.yaml
  if [ $family = edm ]; then   # predicted coefficients for the record; those by fd are then chosen
    snrkit tune --config $here/edm.yaml --by predicted --sampler pixel-7 --sampler pixel-13 --sampler pixel-21 \
      --sampler pixel-35 --sampler heun-13-pixel --sampler heun-21-pixel --sampler multistep-13 --sampler es-13
  fi
  snrkit tune --config $here/$family.yaml --by fd
done
for family in edm-13 ddpm-20 flow-13; do   # these two rows have coefficients that no score has chosen
  name=${family%-*} cost=${family#*-}
  snrkit tune --config $here/$name.yaml --by predicted --sampler "predicted-$cost"
  snrkit tune --config $here/$name.yaml --by gap --sampler "gap-$cost"
done
for family in edm ddpm flow perturbed fine-tuned; do
  snrkit compare --config runs/corrections-$family/tune/tuned.yaml
done
# CIFAR-10 where a zip of its training images lies (see configs/cifar10.yaml)
if [ -e "${CIFAR10:=data/cifar10-train.zip}" ]; then
  snrkit train --config configs/cifar10.yaml --set data.path="$CIFAR10" --set train.images=560000
  snrkit tune --config $here/cifar10.yaml --set data.path="$CIFAR10" --set train.images=560000 --by predicted \
    --sampler pixel-13 --sampler es-13
  snrkit tune --config $here/cifar10.yaml --set data.path="$CIFAR10" --set train.images=560000 --by fd
  snrkit compare --config runs/cifar10/tune/tuned.yaml
fi
for family in edm flow ddpm; do
  snrkit sweep $here/seeds-$family.yaml
done
python $here/seeds.py runs > $here/seeds.md
snrkit sweep $here/blind.yaml
python $here/blind.py runs > studies/corrections/blind.md
for family in edm ddpm flow; do
  snrkit measure-shift --config $here/shift-$family.yaml
  snrkit measure-shift --config $here/shift-$family.yaml --sampler euler-20 --sampler ancestral-20 \
    --set 'shift.probes=[window, horizon, amplification, audit, estimator, why]'
done
snrkit measure-shift --config $here/shift-edm.yaml --sampler euler-13 \
  --set 'shift.probes=[window, horizon, amplification, audit, estimator, why]'
python $here/tables.py runs > studies/corrections/tables.md
