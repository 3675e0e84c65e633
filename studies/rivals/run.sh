# The comparisons of studies/rivals/README.md, resumable. Run it as `make rivals-study`, or `sh studies/rivals/run.sh digits`.
# CIFAR-10's model is that of the study of fitted steps (studies/fitted/run.sh cifar10), trained in the same folder of runs.
set -e
here=studies/rivals runs=${RUNS:-runs}
export CIFAR10="${CIFAR10:-data/cifar10-train.zip}" # see configs/cifar10.yaml
for name in ${@:-digits digits-attention cifar10 cifar10-attention}; do
  config=$here/$name.yaml data=
  case $name in cifar10*)
    [ -e "$CIFAR10" ] || continue # without its images
    data="--set data.path=$CIFAR10" ;;
  esac
  case $name in *-attention)
    snrkit train $config --runs $runs $data ;;
  *)
    tuned=
    for row in dcw dcw-before gain epsilon-scaling score-rescaling fitted bns; do tuned="$tuned --sampler $row"; done
    snrkit tune --config $config --runs $runs --by flow $data $tuned
    for by in fitted gits oss; do
      snrkit design --config $config --runs $runs --sampler euler --nfe 13 --by $by $data
    done
    snrkit fit-estimator $config --runs $runs $data
    python $here/rows.py $name $runs > $runs/$name-rivals.yaml
    config=$runs/$name-rivals.yaml ;;
  esac
  snrkit compare --config $config --runs $runs $data
  run=$runs/$(sed -n 's/^name: //p' $here/$name.yaml)
  sed -n '/^| sampler/,/^$/p' $run/compare.md | awk '{print} /^$/ && ++n == 2 {exit}' > $here/$name.md
  sed -n '/^If none of the/p' $run/compare.md >> $here/$name.md
  echo >> $here/$name.md
  case $name in *-attention) python $here/steps.py $run >> $here/$name.md ;; esac
done
