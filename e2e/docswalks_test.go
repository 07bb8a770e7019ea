//go:build unix

package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cantuslog/cantus/internal/testkit"
)

// walks has the pages whose command lines are run as they are written.
var walks = map[string]walked{
	"docs/backup.md":   {prepare: prepareBackup, steps: backupSteps},
	"docs/checking.md": {prepare: writeCheckedHistory},
	"docs/guide.md": {
		long: true, only: regexp.MustCompile(`^cantus (?:cluster|serve|namespace)`), prepare: func(w *pageWalk) { w.three() }, steps: olderCopySteps,
	},
	"docs/event-sourcing.md": {prepare: func(w *pageWalk) { w.filled(); w.write("order.json", "{}") }},
	"docs/import.md":         {prepare: prepareImport, steps: importSteps},
	"docs/mirror.md":         {prepare: prepareMirror, steps: mirrorSteps},
	"docs/operations.md":     {long: true, prepare: prepareOperations, steps: operationsSteps},
	"docs/page.md":           {only: regexp.MustCompile(`^cantus `), prepare: func(w *pageWalk) { w.set("CANTUS_HTTP", "127.0.0.1:0") }},
	"docs/recover.md":        {long: true, prepare: prepareRecover, steps: recoverSteps},
	"docs/retention.md":      {prepare: prepareRetention, steps: retentionSteps},
	"docs/salvage.md":        {prepare: prepareSalvage, steps: salvageSteps},
	"docs/traces.md": {
		only: regexp.MustCompile(`^cantus `), prepare: func(w *pageWalk) { w.put("http://127.0.0.1:4318", "http://"+freeAddress(w.t)) },
	},
	"README.md": {
		long: true, only: regexp.MustCompile(`10\.0\.0\.|openssl|upgrade check`), prepare: prepareThreeMachines, steps: threeMachinesSteps,
	},
	"subjects.md": {only: regexp.MustCompile(`^cantus `), prepare: prepareAccounts},
}

func prepareBackup(w *pageWalk) {
	n := w.filled()
	w.put("/mnt/backup", w.path("backup"))
	w.put("nats://n1:4222,nats://n2:4222,nats://n3:4222", n.url)
	w.put("127.0.0.1:8223", freeAddress(w.t))
	w.put("127.0.0.1:4333", freeAddress(w.t))
	w.put("/usr/local/bin/cantus", program)
}

const archiverLine = "cantus backup --to /mnt/backup --every 10s --http 127.0.0.1:8223"

// emptyCluster starts the new cluster of a restore.
func emptyCluster(w *pageWalk) { w.put("nats://new:4222", w.node().url) }

var backupSteps = map[string]lineStep{
	"cantus backup --to /mnt/backup": {shows: "generation 1: 12 new transactions, 1.1 KiB in batches, 873 B written, in 131ms"},
	"cantus backup --to 's3://bank-log?prefix=prod/'": {
		// Without a store it fails: e2e/stores_test.go has one.
		before: func(w *pageWalk) {
			for name, value := range map[string]string{
				"AWS_REGION": "eu-north-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": "http://" + freeAddress(w.t),
			} {
				w.set(name, value)
			}
		},
		status: 2, prints: []string{"connection refused"},
	},
	archiverLine:                     {goesOn: "metrics on", after: func(w *pageWalk) { w.stop(archiverLine) }},
	"/usr/local/bin/" + archiverLine: {goesOn: "metrics on", after: func(w *pageWalk) { w.stop("/usr/local/bin/" + archiverLine) }},
	"CANTUS_SERVER=nats://n1:4222,nats://n2:4222,nats://n3:4222 cantus backup --to /mnt/backup --quiet >/dev/null": {prints: []string{`^$`}},
	"cantus restore --from /mnt/backup --server nats://127.0.0.1:4333":                                             {prints: []string{"partition 0: restored up to txid 815"}},
	"cantus read 0 --server nats://127.0.0.1:4333":                                                                 {prints: []string{"transaction 815"}},
	"cantus restore --from /mnt/backup --server nats://new:4222":                                                   {before: emptyCluster},
	"cantus restore --from /mnt/backup --to-time 2026-11-01T08:30 --server nats://new:4222":                        {before: emptyCluster},
	"cantus restore --from /mnt/backup --to-txid 0=812 --server nats://new:4222":                                   {before: emptyCluster, prints: []string{"partition 0: restored up to txid 812"}},
	"cantus restore --from /mnt/backup --partition 0 --to-txid 0=812 --server nats://new:4222":                     {before: emptyCluster},
}

// writeCheckedHistory writes the history that the page has, in pieces.
func writeCheckedHistory(w *pageWalk) {
	text, err := os.ReadFile("../docs/checking.md")
	if err != nil {
		w.t.Fatal(err)
	}
	var all strings.Builder
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		all.WriteString(block[1])
	}
	w.write("history.jsonl", all.String())
}

func prepareImport(w *pageWalk) {
	w.filled()
	w.put("nats://other:4222", w.node().url)
}

var importSteps = map[string]lineStep{
	// The rest of what another node was given of the same file is given up.
	"head -n 3 orders.jsonl > begun.jsonl": {before: func(w *pageWalk) { w.set("CANTUS_SERVER", w.node().url) }},
}

func prepareMirror(w *pageWalk) {
	old := w.filled("--retention-interval", "100ms")
	w.put("nats://old:4222", old.url)
	w.put("nats://127.0.0.1:4231", old.url)
	w.put("127.0.0.1:4350", freeAddress(w.t))
	w.put("127.0.0.1:8224", freeAddress(w.t))
}

const (
	mirrorLine       = "cantus mirror --from nats://old:4222 --to nats://new:4222"
	mirrorHereLine   = "cantus mirror --from nats://127.0.0.1:4231 --to nats://127.0.0.1:4350"
	mirrorCursorLine = mirrorLine + " --cursor site2"
	mirrorHTTPLine   = mirrorLine + " --http 127.0.0.1:8224"
)

var mirrorSteps = map[string]lineStep{
	"cantus serve --data mirror --partitions 4": {after: func(w *pageWalk) { w.put("nats://new:4222", w.ready.url) }},
	mirrorLine: {goesOn: "level at", shows: "partition 0: level at txid 7", after: func(w *pageWalk) { w.stop(mirrorLine) }},
	// On a machine that has no other mirror.
	"cantus serve --data mirror --partitions 4 --listen 127.0.0.1:4350 --http off": {before: func(w *pageWalk) { w.dir = w.t.TempDir() }},
	mirrorHereLine:   {goesOn: "level at", after: func(w *pageWalk) { w.stop(mirrorHereLine) }},
	mirrorCursorLine: {goesOn: "level at", after: func(w *pageWalk) { w.stop(mirrorCursorLine) }},
	mirrorHTTPLine:   {goesOn: "level at", after: func(w *pageWalk) { w.stop(mirrorHTTPLine) }},
}

func prepareRetention(w *pageWalk) {
	w.filled()
	w.put("/mnt/backup", w.path("backup"))
	w.put("/mnt/backup2", w.path("backup2"))
	w.put("…", "--data archived")
}

const retentionArchiver = "cantus backup --to /mnt/backup --cursor archive --every 1m"

var retentionSteps = map[string]lineStep{
	retentionArchiver: {goesOn: "generation", after: func(w *pageWalk) { w.stop(retentionArchiver) }},
}

// prepareSalvage has a directory of a stopped node that lacks a transaction.
func prepareSalvage(w *pageWalk) {
	n := w.filled()
	if err := n.stop(); err != nil {
		w.t.Fatal(err)
	}
	w.put("DIR", n.dir)
	w.put("FILE", w.path("FILE"))
	w.put("nats://new:4222", w.node().url)
}

var salvageSteps = map[string]lineStep{
	"cantus salvage DIR                      # which transactions are left": {
		prints: []string{`PARTITION +TRANSACTIONS +LEFT +MISSING\n0 +815 +1-815 +none`},
	},
	"cantus salvage DIR --partition 0 --to FILE": {before: func(w *pageWalk) {
		if err := os.Remove(filepath.Join(w.dir, "FILE")); err != nil {
			w.t.Fatal(err)
		}
	}},
}

// prepareThreeMachines has the other two of three machines beside this one.
func prepareThreeMachines(w *pageWalk) {
	for _, host := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} {
		for _, port := range []string{"4222", "6222", "7222"} {
			w.put(host+":"+port, freeAddress(w.t))
		}
	}
	w.put("/var/lib/cantus", w.path("n1"))
	writeExampleUsers(w.t, w.path("nats.conf"))
	w.set("CANTUS_USER", "ops")
	w.set("CANTUS_PASSWORD", "secret")
	w.set("CANTUS_INBOX_PREFIX", "_INBOX_ops")
	w.set("CANTUS_SERVER", w.here["10.0.0.1:4222"])
}

const firstMachine = "cantus serve --name n1 --data /var/lib/cantus --cluster-secret-file token --bootstrap n1,n2,n3 " +
	"--listen 10.0.0.1:4222 --nats-config nats.conf --cluster 10.0.0.1:6222 --raft 10.0.0.1:7222 --routes 10.0.0.2:6222,10.0.0.3:6222"

var threeMachinesSteps = map[string]lineStep{
	firstMachine: {goesOn: "waiting", after: func(w *pageWalk) {
		all := []*node{w.ready}
		for _, n := range []string{"2", "3"} { // the same on the others, with their names and addresses
			line := strings.NewReplacer("--name n1", "--name n"+n, "/var/lib/cantus", w.path("n"+n), "10.0.0.1", "10.0.0."+n, "10.0.0."+n, "10.0.0.1").Replace(firstMachine)
			all = append(all, w.serve(w.local(line)))
		}
		for _, n := range all {
			if err := n.awaitReady(); err != nil {
				w.t.Fatal(err)
			}
		}
	}},
}

// prepareAccounts writes the NATS configuration of several accounts.
func prepareAccounts(w *pageWalk) {
	text, err := os.ReadFile("../subjects.md")
	if err != nil {
		w.t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```\n(accounts \\{\n.*?)```").FindSubmatch(text)
	if found == nil {
		w.t.Fatal("subjects.md has no configuration with accounts")
	}
	w.write("accounts.conf", string(found[1]))
}

var olderCopySteps = map[string]lineStep{
	"cantus cluster remove n3 --wait 1m": {before: func(w *pageWalk) { w.cluster.node("n3").kill() }, after: func(w *pageWalk) { w.left("n3") }},
	"cantus serve --name n3 --data EMPTY --cluster … --routes …": {
		before: func(w *pageWalk) {
			w.put("--cluster … --routes …", "--cluster "+freeAddress(w.t)+" --routes "+w.cluster.routes["n1"])
			w.put("EMPTY", w.path("n3"))
		},
		goesOn: "waiting", after: func(w *pageWalk) { w.cluster.awaitHeard(w.t, "n3", w.cluster.nodes[0]) },
	},
}

func prepareOperations(w *pageWalk) {
	w.three()
	w.write("cantus.yaml", "name: n1\ndata: n1\npartitions: 4\n")
	w.put("/mnt/backup", w.path("backup"))
}

// asFounded makes n1, n2 and n3 the members again, and no others.
func asFounded(w *pageWalk) { w.have("n1", "n2", "n3") }

var operationsSteps = map[string]lineStep{
	"cantus cluster add n4 --wait 10m": {before: func(w *pageWalk) {
		asFounded(w)
		w.waits("n4")
	}},
	"cantus cluster remove n3 --wait 10m": {after: func(w *pageWalk) { w.left("n3") }},
	"cantus cluster drain n2 --wait 10m":  {before: func(w *pageWalk) { w.have("n1", "n2", "n3", "n4") }},
	// A replica that diverged does not lead.
	"cantus cluster rebuild 0 --node n3 --wait 10m": {before: func(w *pageWalk) {
		asFounded(w)
		w.mustRun("cantus cluster transfer 0 --to n1 --wait 1m")
	}},
	"cantus retention set all --age 720h --archive archive": {after: func(w *pageWalk) { w.mustRun("cantus backup --cursor archive --to " + w.path("backup")) }},
	"cantus get 0 812": {prints: []string{"transaction 812"}},
}

// prepareRecover has a cluster named bank, a mirror of it, and a backup.
func prepareRecover(w *pageWalk) {
	w.three("--cluster-name", "bank")
	w.put("BACKUP", w.path("backup"))
	w.mustRun("cantus backup --to " + w.path("backup"))
	mirror := w.node()
	w.put("mirror:4222", strings.TrimPrefix(mirror.url, "nats://"))
	w.mustRun("cantus mirror --once --from " + w.cluster.url() + " --to " + mirror.url)
	n1 := w.cluster.node("n1")
	w.put("n1:4222", strings.TrimPrefix(n1.url, "nats://"))
	w.put("DIR", n1.dir)
	w.lose("n2", "n3")
}

// lose kills nodes, and waits until the others know that there is no leader.
func (w *pageWalk) lose(names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.cluster.node(name).kill()
	}
	testkit.Until(w.t, "nobody leads", func() bool {
		_, status := w.run("cantus status --server " + w.cluster.node("n1").url)
		return status == 4
	})
}

var recoverSteps = map[string]lineStep{
	"cantus status --server n1:4222":         {status: 4, prints: []string{"docs/recover.md"}},
	"cantus cluster status --server n1:4222": {prints: []string{"docs/recover.md"}},
	"cantus read 0 --replica n1 --server n1:4222": {
		prints: []string{"transaction 815"}, after: func(w *pageWalk) { w.cluster.node("n1").kill() },
	},
	"cantus recover DIR":                   {prints: []string{"has transactions up to 815"}},
	"cantus recover DIR --new-name bank-2": {input: "bank\n"},
	"cantus serve --name n1 --data DIR --cluster-name bank-2 …": {
		before: func(w *pageWalk) {
			w.put("…", "--cluster "+w.cluster.routes["n1"]+" --bootstrap n1,n2,n3")
		},
		after: func(w *pageWalk) { w.set("CANTUS_SERVER", w.ready.url) },
	},
	"cantus serve --name n2 --data EMPTY --cluster-name bank-2 --cluster … --routes …": {
		before: func(w *pageWalk) {
			w.put("EMPTY", w.path("n2"))
			w.put("--cluster … --routes …", "--cluster "+freeAddress(w.t)+" --routes "+w.cluster.routes["n1"])
		},
		goesOn: "waiting",
	},
	"cantus cluster add n3 --wait 1m": {before: func(w *pageWalk) {
		w.serve("cantus serve --name n3 --data n3 --cluster-name bank-2 --cluster " + freeAddress(w.t) + " --routes " + w.cluster.routes["n1"])
		testkit.Until(w.t, "n3 is heard", func() bool {
			out, _ := w.run("cantus cluster status")
			return regexp.MustCompile(`n3 +waiting`).MatchString(out)
		})
	}},
	"cantus mirror promote --server mirror:4222":   {prints: []string{"promoted"}},
	"cantus recover DIR --new-name bank-2 --empty": {before: someElsewhere, input: "bank\n", after: serveRecovered},
}

// someElsewhere has a directory that lacks partition 3, of another cluster.
func someElsewhere(w *pageWalk) {
	w.three("--cluster-name", "bank", "--replicas", "1")
	w.mustRun("cantus backup --to " + w.path("second"))
	w.put("BACKUP", w.path("second"))
	s, err := statusOf(w.t.Context(), w.cluster.dial("n1"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range w.cluster.nodes {
		if n.name != s.Partitions[3].Placement[0] {
			w.ready = n
		}
		n.kill()
	}
	w.put("DIR", w.ready.dir)
}

func serveRecovered(w *pageWalk) {
	n := w.serve("cantus serve --name " + w.ready.name + " --data " + w.ready.dir + " --cluster-name bank-2 --cluster " + freeAddress(w.t))
	if err := n.awaitReady(); err != nil {
		w.t.Fatal(err)
	}
	w.set("CANTUS_SERVER", n.url)
}
