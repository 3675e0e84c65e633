# The part of the study that asks how guidance changes the answer, after `sh studies/fitted/run.sh edm-0`; resumable.
set -e
here=studies/fitted runs=${RUNS:-runs}
guided() { snrkit "$1" --config $runs/guidance-$2.yaml --runs $runs; }
python $here/guidance.py tried $runs > $runs/guidance-tried.yaml
tune() { snrkit tune --config $runs/guidance-tried.yaml --runs $runs --by flow "$@"; }
tune --sampler tried-dcw-0 --parameter 0.pixel
tune --parameter 1.pixel $(for w in 0.25 0.5 1 2 3; do echo --sampler tried-dcw-$w; done)
sed "s/^name:.*/name: fitted-edm-0/" $runs/fitted-edm-0/tune/tuned.yaml > $runs/guidance-tuned.yaml
guided sample tuned
guided eval-fid tuned
python $here/guidance.py chosen $runs > $runs/guidance-chosen.yaml
guided sample chosen
guided eval-fid chosen
guided measure-shift chosen
mkdir -p $here/results
python $here/guidance.py results $runs > $here/results/guidance.json
