#!/usr/bin/env bash
# Starts a real SLURM cluster on this machine for the tests. Needs root and Debian's packages, no systemd.
# Without a word: gpu1 and gpu2 with four stand-in GPUs each, cpu1; partitions cpu, gpu and scavenge (which gpu
# preempts); accounting. Then: . "$SNPDECONV_SLURM/env.sh" (default /tmp/snpdeconv-slurm).
# With `odd`, in a folder of its own beside that one: nodes whose names no DNS knows, GPU types 3090 and
# 1g.10gb, a hidden partition, an account that the partition refuses, requeue forbidden, arrays of 20 at most,
# jobs forgotten after 2 s, memory limits enforced, and no accounting. Doing it again changes nothing.
set -euo pipefail
layout=${1:-usual}
root=${SNPDECONV_SLURM:-/tmp/snpdeconv-slurm}
nodes="gpu1 gpu2 cpu1"
port=17000
if [ "$layout" = odd ]; then
    root=$root-odd
    nodes="knoten-3090 knoten-mig"
    port=17100
fi
run=$root/run
log=$root/log
export SLURM_CONF=$root/etc/slurm.conf
[ "$(id -u)" = 0 ] || { echo "the test cluster needs root" >&2; exit 1; }

if ! type slurmctld slurmd slurmdbd sbatch munged mariadbd >/dev/null 2>&1; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq \
        --no-install-recommends slurmctld slurmd slurm-client munge slurmdbd mariadb-server; } >"${TMPDIR:-/tmp}/slurm-apt.log" 2>&1 ||
        { tail -3 "${TMPDIR:-/tmp}/slurm-apt.log" >&2; exit 1; }
fi
mkdir -p "$root/etc" "$run"/state "$log"
for node in $nodes; do mkdir -p "$run/spool/$node"; done

# A pid file may outlive its process, or name another one by now.
alive() { [ -s "$run/$1.pid" ] && [[ $(readlink "/proc/$(cat "$run/$1.pid" 2>/dev/null)/exe") == */"${1%%-*}"* ]]; }
await() {
    for _ in $(seq 150); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    echo "timed out: $*" >&2
    exit 1
}

{
    cat <<CONF
ClusterName=$([ "$layout" = odd ] && echo odd || echo test)
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
# A requeued job waits as long as its credential may live: 120 s by default.
AuthInfo=socket=$run/munge.sock,cred_expire=6
StateSaveLocation=$run/state
SlurmctldPidFile=$run/slurmctld.pid
SlurmctldLogFile=$log/slurmctld.log
SlurmdPidFile=$run/slurmd-%n.pid
SlurmdLogFile=$log/slurmd-%n.log
SlurmdSpoolDir=$run/spool/%n
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
# Believe the CPUs and the memory below, not the machine's.
SlurmdParameters=config_overrides
GresTypes=gpu
# A node set down by hand stays down; one whose daemon died comes back.
ReturnToService=1
SlurmdTimeout=10
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# --signal's USR2 comes on preemption too.
SlurmctldParameters=preempt_send_user_signal
JobAcctGatherType=jobacct_gather/linux
CONF
    if [ "$layout" = odd ]; then
        cat <<CONF
MinJobAge=2
JobRequeue=0
JobSubmitPlugins=lua
MaxArraySize=21
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
NodeName=knoten-3090 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17101 CPUs=8 RealMemory=16000 Gres=gpu:3090:4
NodeName=knoten-mig NodeHostname=localhost NodeAddr=127.0.0.1 Port=17102 CPUs=8 RealMemory=16000 Gres=gpu:1g.10gb:7
PartitionName=short Nodes=knoten-mig Default=YES MaxTime=2:00:00 DenyAccounts=closed
PartitionName=old Nodes=knoten-3090,knoten-mig MaxTime=1-00:00:00
PartitionName=secret Nodes=knoten-3090 Hidden=YES MaxTime=1:00:00
CONF
    else
        cat <<CONF
MinJobAge=3600
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=17010
AccountingStoragePass=$run/munge.sock
NodeName=gpu1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17001 CPUs=8 RealMemory=16000 Gres=gpu:a100:4
NodeName=gpu2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17002 CPUs=8 RealMemory=16000 Gres=gpu:a100:4
NodeName=cpu1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17003 CPUs=8 RealMemory=16000
PartitionName=cpu Nodes=cpu1 Default=YES MaxTime=1-00:00:00
PartitionName=gpu Nodes=gpu[1-2] PriorityTier=10 MaxTime=1-00:00:00
PartitionName=scavenge Nodes=gpu[1-2] PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
CONF
    fi
} >"$SLURM_CONF"
# Any character devices stand in for GPUs; ordinary files would leave CUDA_VISIBLE_DEVICES empty.
if [ "$layout" = odd ]; then
    cat >"$root/etc/gres.conf" <<CONF
NodeName=knoten-3090 Name=gpu Type=3090 File=/dev/null,/dev/zero,/dev/full,/dev/random
NodeName=knoten-mig Name=gpu Type=1g.10gb File=/dev/null,/dev/zero,/dev/full,/dev/random,/dev/urandom,/dev/tty,/dev/ptmx
CONF
    cat >"$root/etc/job_submit.lua" <<'LUA'
function slurm_job_submit(job, partitions, user)
    job.requeue = 0
    if job.account == "closed" then
        slurm.log_user("account closed may not submit here")
        return 2045
    end
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
LUA
else
    echo 'NodeName=gpu[1-2] Name=gpu Type=a100 File=/dev/null,/dev/zero,/dev/full,/dev/random' >"$root/etc/gres.conf"
fi
cat >"$root/etc/slurmdbd.conf" <<CONF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=17010
SlurmUser=root
AuthInfo=socket=$run/munge.sock
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
PidFile=$run/slurmdbd.pid
LogFile=$log/slurmdbd.log
CONF
chmod 600 "$root/etc/slurmdbd.conf"
# Ranks of several nodes find each other by name on this layout; on the other nothing but SLURM knows them.
[ "$layout" = odd ] || grep -q '# snpdeconv test cluster$' /etc/hosts || echo '127.0.0.1 gpu1 gpu2 cpu1 # snpdeconv test cluster' >>/etc/hosts
echo "export SLURM_CONF=$SLURM_CONF" >"$root/env.sh"

[ -s "$run/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$run/munge.key")
alive munged || munged --key-file="$run/munge.key" --socket="$run/munge.sock" --pid-file="$run/munged.pid" \
    --log-file="$log/munged.log" --seed-file="$run/munged.seed"
if [ "$layout" != odd ]; then
export MYSQL_UNIX_PORT=$run/mysql.sock
[ -d "$run/mysql/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$run/mysql" --skip-test-db >"$log/mysql-install.log" 2>&1
# The braces: a shell that waits for it in the background must not keep the caller's streams open.
{ alive mariadbd || setsid mariadbd --no-defaults --user=root --datadir="$run/mysql" --socket="$MYSQL_UNIX_PORT" \
    --pid-file="$run/mariadbd.pid" --skip-networking --innodb-buffer-pool-size=32M --innodb-log-file-size=8M \
    --innodb-flush-log-at-trx-commit=0; } </dev/null >"$log/mysql.log" 2>&1 &
await mariadb --no-defaults -e 'select 1'
alive slurmdbd || SLURM_CONF=$root/etc/slurmdbd.conf slurmdbd
await sacctmgr -n show cluster
fi
alive slurmctld || slurmctld
await scontrol ping
for node in $nodes; do alive "slurmd-$node" || slurmd -N "$node"; done
is_up() { [ "$(sinfo -haN -o '%N %t' | sort -u | grep -cE ' (idle|mix|alloc)')" -ge "$(wc -w <<<"$nodes")" ]; }
await is_up
sinfo -a
