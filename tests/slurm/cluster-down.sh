#!/usr/bin/env bash
# Stops what cluster-up.sh started, by pid; `odd`: the other layout. With --purge its state goes too.
root=${SNPDECONV_SLURM:-/tmp/snpdeconv-slurm}
if [ "${1-}" = odd ]; then
    root=$root-odd
    shift
fi
run=$root/run
export SLURM_CONF=$root/etc/slurm.conf
alive() { [ -s "$run/$1.pid" ] && [[ $(readlink "/proc/$(cat "$run/$1.pid" 2>/dev/null)/exe") == */"${1%%-*}"* ]]; }
if alive slurmctld; then
    timeout 10 scancel --user=root
    sleep 2
fi
for name in slurmctld slurmd-gpu1 slurmd-gpu2 slurmd-cpu1 slurmd-knoten-3090 slurmd-knoten-mig slurmdbd mariadbd munged; do
    alive $name && kill "$(cat "$run/$name.pid")"
    for _ in $(seq 100); do
        alive $name || break
        sleep 0.1
    done
done
if [[ $root != *-odd ]]; then
    hosts=$(grep -v '# snpdeconv test cluster$' /etc/hosts)
    printf '%s\n' "$hosts" >/etc/hosts
fi
[ "${1-}" != --purge ] || rm -rf "$root"
