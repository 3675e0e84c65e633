# The study of studies/fitted/README.md, resumable: hours on two cores. Run it as `make fitted-study`, or
# `sh studies/fitted/run.sh edm-0` for one of its models. What it finds is in studies/fitted/results and tables.md.
set -e
here=studies/fitted runs=${RUNS:-runs}
mkdir -p $here/results
export CIFAR10="${CIFAR10:-data/cifar10-train.zip}" # see configs/cifar10.yaml
for model in ${@:-edm-0 flow ddpm edm-1 edm-2 cifar10}; do
  if [ $model != cifar10 ]; then
    snrkit train --config $here/$model.yaml --runs $runs
  elif [ -e "$CIFAR10" ]; then
    snrkit train --config $here/$model.yaml --runs $runs --set data.path="$CIFAR10"
  else
    continue # without its images
  fi
  python $here/rows.py samplers $model $runs > $runs/$model-rows.yaml
  for how in score:fd predicted:predicted; do
    chosen=$(for n in 5 7 9 13 20; do echo --sampler dcw-${how%:*}-$n; done)
    snrkit tune --config $runs/$model-rows.yaml --runs $runs --by ${how#*:} $chosen
  done
  chosen=$(for n in 5 7 9 13 20; do for row in dcw-flow dcw-table gain-flow fitted fitted-by-band; do
    echo --sampler $row-$n; done; done) # those of equal steps follow one another and share their flow
  snrkit tune --config $runs/$model-rows.yaml --runs $runs --by flow $chosen
  for n in 5 7 9 13 20; do
    snrkit design --config $runs/$model-rows.yaml --runs $runs --sampler euler-$n --nfe $n
  done
  python $here/rows.py final $model $runs > $runs/$model-final.yaml
  snrkit sample --config $runs/$model-final.yaml --runs $runs
  snrkit eval-fid --config $runs/$model-final.yaml --runs $runs
  snrkit measure-shift --config $runs/$model-final.yaml --runs $runs
  python $here/rows.py results $model $runs > $here/results/$model.json
  if [ $model = cifar10 ]; then # whose ranges are too small for FD-infinity
    snrkit eval-fid --config $runs/$model-final.yaml --runs $runs --set metrics.ranges=1
    python $here/rows.py whole $model $runs > $here/results/$model-whole.json
  fi
done
python $here/tables.py > $here/tables.md
python $here/verdicts.py > $here/verdicts.md
