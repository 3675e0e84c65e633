# The comparison of studies/rivals/README.md, resumable. Run it as `make rivals-study`, or `sh studies/rivals/run.sh digits`.
# CIFAR-10's model is that of the study of fitted steps (studies/fitted/run.sh cifar10), trained in the same folder of runs.
set -e
here=studies/rivals runs=${RUNS:-runs}
export CIFAR10="${CIFAR10:-data/cifar10-train.zip}" # see configs/cifar10.yaml
for name in ${@:-digits cifar10}; do
  run=$runs/rivals data=
  if [ $name = cifar10 ]; then
    [ -e "$CIFAR10" ] || continue # without its images
    run=$runs/fitted-cifar10 data="--set data.path=$CIFAR10"
  fi
  tuned=
  for row in dcw dcw-before gain epsilon-scaling score-rescaling fitted bns; do tuned="$tuned --sampler $row"; done
  snrkit tune --config $here/$name.yaml --runs $runs --by flow $data $tuned
  for by in fitted gits oss; do
    snrkit design --config $here/$name.yaml --runs $runs --sampler euler --nfe 13 --by $by $data
  done
  snrkit fit-estimator $here/$name.yaml --runs $runs $data
  python $here/rows.py $name $runs > $runs/$name-rivals.yaml
  snrkit compare --config $runs/$name-rivals.yaml --runs $runs $data
  sed -n '/^| sampler/,/^$/p' $run/compare.md | awk '{print} /^$/ && ++n == 2 {exit}' > $here/$name.md
done
