package broker_test

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testcert"
	"github.com/cantuslog/cantus/subjects"
)

// The metrics of a cluster say who leads, which replica is away, and that the
// partition stops if it loses one more.
func TestMetricsOfACluster(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	metric := func(name string) (sum float64) {
		for _, n := range c.names {
			if n := c.node(n); n != nil {
				sum += broker.Metric(t, n, name)
			}
		}
		return sum
	}
	eventually(t, "one leader that hears of all voters", func() bool {
		return metric("cantus_leading") == 1 && metric("cantus_leader_known") == 6 && metric("cantus_members") == 9 &&
			metric("cantus_voters") == 3 && metric("cantus_voters_caught_up") == 3 && metric("cantus_voters_away") == 0
	})
	if begun := metric("cantus_leaderships_total"); begun < 1 {
		t.Errorf("leadership began %v times", begun)
	}
	nc := c.conn("n1")
	for i := range 3 {
		keep(t, nc, 0, "x", fmt.Sprint("m", i))
	}
	eventually(t, "three replicas with three transactions", func() bool {
		return metric("cantus_high_water_mark") == 9 && metric("cantus_replica_lag_transactions") == 0 && metric("cantus_replica_lag_seconds") == 0
	})
	gone := "n3"
	if broker.Metric(t, c.node(gone), "cantus_leading") == 1 {
		gone = "n2"
	}
	c.stop(gone)
	eventually(t, "a voter that is away", func() bool {
		return metric("cantus_voters") == 3 && metric("cantus_voters_caught_up") == 2 && metric("cantus_voters_away") == 1 && metric("cantus_members_away") == 2
	})
}

// If all replicas of a partition are away, the nodes without one say that it
// has no leader.
func TestMetricsOfAPartitionThatIsElsewhere(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1, Replicas: 1})
	holder := c.leader(0, "n1")
	known := func() (sum float64) {
		for _, name := range c.names {
			if n := c.node(name); n != nil {
				sum += broker.Metric(t, n, "cantus_leader_known")
			}
		}
		return sum
	}
	eventually(t, "three nodes that know the leaders of the partition and of the facts", func() bool { return known() == 6 })
	c.stop(holder)
	eventually(t, "two nodes that know the leader of the facts only", func() bool { return known() == 2 })
}

// A certificate's expiry is that of the one that the port shows: the new one
// after a reload, and the old one after a reload that fails.
func TestCertificateExpiryInMetrics(t *testing.T) {
	authority := testcert.NewAuthority(t)
	soon, later := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(9*time.Hour).Truncate(time.Second)
	cert, key := authority.Files("server", soon)
	conf := config(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q }", cert, key))
	n, _ := openNode(t, t.TempDir(), broker.Options{NATSConfig: conf})
	must := func(step string, want time.Time) {
		t.Helper()
		if at := broker.Metric(t, n, "cantus_certificate_expiry_timestamp_seconds"); at != float64(want.Unix()) {
			t.Errorf("%s: %v, not %v", step, at, want.Unix())
		}
	}
	must("at first", soon)
	authority.Files("server", later)
	if err := n.Reload(broker.Options{NATSConfig: conf}); err != nil {
		t.Fatal(err)
	}
	must("after a reload", later)
	authority.Files("server", soon)
	text, err := os.ReadFile(conf)
	if err == nil {
		err = os.WriteFile(conf, []byte(string(text)+"\nauthorization { users = [ {user: a, password: b} ] }"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Reload(broker.Options{NATSConfig: conf}); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Fatalf("a reload that takes a restart: %v", err)
	}
	must("after a reload that failed", later)
}

// A node says which certificates have expired, at its start and after a reload.
func TestAnExpiredCertificateIsLogged(t *testing.T) {
	authority := testcert.NewAuthority(t)
	cert, key := authority.Files("server", time.Now().Add(-time.Hour))
	conf := config(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q }", cert, key))
	var log buffer
	opts := broker.Options{NATSConfig: conf, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	n, _ := openNode(t, t.TempDir(), opts)
	if err := n.Reload(broker.Options{NATSConfig: conf}); err != nil {
		t.Fatal(err)
	}
	const warning = `level=WARN msg="a certificate has expired`
	if said := log.count(warning); said != 2 || n.CertificateChanges() != 0 {
		t.Errorf("it was said %d times, after %d changes", said, n.CertificateChanges())
	}
	authority.Files("server", time.Now().Add(time.Hour))
	if err := n.Reload(broker.Options{NATSConfig: conf}); err != nil || log.count(warning) != 2 || n.CertificateChanges() != 1 {
		t.Errorf("with another certificate it was said %d times, after %d changes, %v", log.count(warning), n.CertificateChanges(), err)
	}
}

// Other authorities in the same file are a change of certificates too.
func TestAReloadSeesOtherAuthorities(t *testing.T) {
	authority := testcert.NewAuthority(t)
	cert, key := authority.Files("server", time.Now().Add(time.Hour))
	conf := config(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }", cert, key, authority.CAFile()))
	n, _ := openNode(t, t.TempDir(), broker.Options{NATSConfig: conf})
	others, err := os.ReadFile(testcert.NamedAuthority(t, "others").CAFile())
	if err == nil {
		err = os.WriteFile(authority.CAFile(), others, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second one changes nothing
		if err := n.Reload(broker.Options{NATSConfig: conf}); err != nil || n.CertificateChanges() != 1 {
			t.Errorf("%d changes, %v", n.CertificateChanges(), err)
		}
	}
}

// Conflicts are counted by the mode of the lock, and those that may be false
// once more.
func TestConflictsInMetrics(t *testing.T) {
	n, nc := one(t, broker.Options{MaxLocks: 2})
	for _, lock := range []string{"a", "b", "c", "d"} {
		appendTx(t, nc, "cantus.append.0", "x", subjects.HeaderAppendLock, lock)
	}
	appendTx(t, nc, "cantus.append.0", "x", write, "d", subjects.HeaderHighWaterMark, "3")
	appendTx(t, nc, "cantus.append.0", "x", subjects.HeaderReadLock, "d", subjects.HeaderHighWaterMark, "3")
	if all := broker.Metric(t, n, "cantus_conflicts_total"); all != 2 || broker.Metric(t, n, "cantus_conflicts_forgotten_total") != 0 {
		t.Errorf("%v conflicts with a lock that is known", all)
	}
	appendTx(t, nc, "cantus.append.0", "x", subjects.HeaderUnless, `{"locks":["d"]}`, subjects.HeaderHighWaterMark, "3")
	if all := broker.Metric(t, n, "cantus_conflicts_total", "unless"); all != 1 {
		t.Errorf("%v conflicts with a condition", all)
	}
	askServed(t, nc, "cantus.admin.trim.0", `{"before":3}`)
	appendTx(t, nc, "cantus.append.0", "x", write, "never", subjects.HeaderHighWaterMark, "0")
	if all := broker.Metric(t, n, "cantus_conflicts_total"); all != 4 || broker.Metric(t, n, "cantus_conflicts_forgotten_total") != 1 {
		t.Errorf("%v conflicts, %v that may be false", all, broker.Metric(t, n, "cantus_conflicts_forgotten_total"))
	}
	if floor, locks := broker.Metric(t, n, "cantus_lock_table_floor_txid"), broker.Metric(t, n, "cantus_lock_table_locks"); floor != 2 || locks != 2 {
		t.Errorf("%v locks, and the floor at %v", locks, floor)
	}
}
