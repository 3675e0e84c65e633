# The study of docs/corrections-study.md, resumable: hours on two cores. Run it as `make corrections-study`.
set -e
here=configs/corrections
for family in edm ddpm flow perturbed first-half fine-tuned; do
  snrkit train --config $here/$family.yaml
done
for family in edm ddpm flow perturbed fine-tuned; do
  snrkit fit-estimator --config $here/$family.yaml
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
for family in edm ddpm flow; do
  snrkit measure-shift --config $here/shift-$family.yaml
done
