#!/bin/sh
# The whole way, on this machine: three nodes, an append, a node is killed, a
# backup, all nodes are lost, a restore. It works in a new directory, and ends
# what it has started: sh examples/tour.sh [PORT], with cantus in the PATH.
set -eu
cd "$(mktemp -d)"
port=${1:-4300} pids=
trap 'kill $pids 2>/dev/null || true; wait' EXIT
serve() { # a node: its number, and flags of a cluster
	number=$1 && shift
	cantus serve --name "n$number" --data "n$number" --http off --listen "127.0.0.1:$((port + number))" "$@" >"n$number.log" 2>&1 &
	pids="$pids $!"
}
routes=127.0.0.1:$((port + 11)),127.0.0.1:$((port + 12)),127.0.0.1:$((port + 13))
for i in 1 2 3; do
	serve $i --cluster "127.0.0.1:$((port + 10 + i))" --routes "$routes" --bootstrap n1,n2,n3
done
export CANTUS_SERVER="nats://127.0.0.1:$((port + 1)),nats://127.0.0.1:$((port + 2)),nats://127.0.0.1:$((port + 3))"
until cantus upgrade check --wait 1m 2>/dev/null; do sleep 1; done # all three have caught up
printf "while three nodes run" | cantus append 0
kill -9 "${pids##* }" # n3
until printf "while two nodes run" | cantus append 0 --id second; do sleep 1; done # the id: once
cantus backup --to backup
kill -9 $pids 2>/dev/null || true
rm -r n1 n2 n3 # all is lost but the backup
serve 4
export CANTUS_SERVER="nats://127.0.0.1:$((port + 4))"
until cantus restore --from backup; do sleep 1; done
cantus read 0 && cantus status
