# The study of docs/corrections-study.md, resumable: hours on two cores. Run it as `make corrections-study`.
set -e
here=configs/corrections
for family in edm ddpm flow perturbed first-half fine-tuned; do
  snrkit train --config $here/$family.yaml
done
for family in edm ddpm flow perturbed fine-tuned; do
  snrkit fit-estimator --config $here/$family.yaml
done
snrkit tune --config $here/edm.yaml --by predicted --sampler predicted-13
snrkit tune --config $here/edm.yaml --by gap --sampler gap-13
for family in edm ddpm flow perturbed fine-tuned; do
  rest=$(grep -oE '^  [a-z]+[a-z0-9-]*:' $here/$family.yaml | tr -d ' :' | grep -vE '^(predicted|gap|heun|euler)-' || true)
  for sampler in $rest; do
    snrkit tune --config $here/$family.yaml --by fd --sampler "$sampler"
  done
  snrkit compare --config runs/corrections-$family/tune/tuned.yaml
done
