package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// oldCluster is a cluster with the same transactions in each partition, one
// batch a time in the map, which is that of its first transaction. In
// atomicPartition the last two of a batch are an atomic batch.
type oldCluster map[int][]time.Time

const atomicPartition = 3

// batchSize is how many transactions each batch has.
const batchSize = 3

func (o oldCluster) batches(partition int) (all []wal.Batch, end wal.Digest) {
	for i, at := range o[partition] {
		var w wal.BatchWriter
		w.Begin(wal.Transactions, uint64(i*batchSize+1), at.UnixNano(), 100)
		for i := range batchSize {
			t := wal.Transaction{Payload: []byte("x")}
			if partition == atomicPartition && i > 0 {
				t.Atomic = wal.Atomic{Index: uint32(i - 1), Size: 2}
			}
			w.Add(&t)
		}
		b, err := wal.ParseBatch(bytes.Clone(w.Finish()))
		if err != nil {
			panic(err)
		}
		all, end = append(all, b), end.Next(b.Bytes())
	}
	return all, end
}

func (o oldCluster) Cluster(context.Context) (backup.Cluster, error) {
	return backup.Cluster{Name: "old", ID: "0123", Partitions: len(o)}, nil
}

func (o oldCluster) Cursors(context.Context, int) ([]subjects.CursorPosition, error) { return nil, nil }

func (o oldCluster) State(_ context.Context, partition int) (backup.State, error) {
	batches, digest := o.batches(partition)
	var none wal.Digest
	return backup.State{
		Base: backup.Point{Digest: hex.EncodeToString(none[:])},
		Last: backup.Point{Txid: uint64(len(batches) * batchSize), Digest: hex.EncodeToString(digest[:])},
	}, nil
}

func (o oldCluster) Batches(_ context.Context, partition int, from, _ uint64, each func(wal.Batch) error) error {
	batches, _ := o.batches(partition)
	for _, b := range batches {
		if b.First >= from {
			if err := each(b); err != nil {
				return err
			}
		}
	}
	return nil
}

// A restore without a cluster says which transaction is the last one at a time.
func TestWhereARestoreToATimeEnds(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 11, 29, 8, minute, 0, 0, time.UTC) }
	place := filepath.Join(t.TempDir(), "backup")
	r, err := backup.Open(t.Context(), place, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []oldCluster{{0: {at(0), at(10)}, 1: {}, 2: nil}, {0: {at(0), at(10), at(40)}, 1: {at(30)}, 2: nil}} {
		if _, err := r.Run(t.Context(), o, backup.RunOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	const none = "would be restored without a transaction, up to txid 0,"
	end := func(txid int, at string) string {
		return fmt.Sprintf("would be restored up to txid %d, committed at %s,", txid, at)
	}
	for _, c := range []struct {
		to     string
		status int
		ends   []string
		says   string
	}{
		{"2026-11-29T07:59:59.999999999Z", exitUsage, nil, "the backup begins at 2026-11-29T08:00:00Z, and has nothing of 2026-11-29T07:59:59.999999999Z or before"},
		{"2026-11-29", exitUsage, nil, "the backup begins at 2026-11-29T08:00:00Z, and has nothing of 2026-11-29T00:00:00Z or before"},
		{"2026-11-29T08:00", 0, []string{end(1, "2026-11-29T08:00:00Z"), none, none}, "partition 1 has nothing of 2026-11-29T08:00:00Z or before: it begins at 2026-11-29T08:30:00Z, and is empty at that time"},
		{"2026-11-29T08:05", 0, []string{end(3, "2026-11-29T08:00:00.000000002Z"), none, none}, "partition 1 has nothing"},
		{"2026-11-29T08:10:00.000000001Z", 0, []string{end(5, "2026-11-29T08:10:00.000000001Z"), none, none}, "partition 1 has nothing"},
		{"2026-11-29T08:30", 0, []string{end(6, "2026-11-29T08:10:00.000000002Z"), end(1, "2026-11-29T08:30:00Z"), none}, ""},
		{"2026-11-30", 0, []string{end(9, "2026-11-29T08:40:00.000000002Z"), end(3, "2026-11-29T08:30:00.000000002Z"), none}, ""},
	} {
		var out, said bytes.Buffer
		status := (&program{out: &out, errOut: &said}).run(t.Context(), []string{"restore", "--from", place, "--to-time", c.to, "--dry-run", "--server", "nats://127.0.0.1:1"})
		if status != c.status || !strings.Contains(said.String(), c.says) || c.says == "" && said.Len() > 0 {
			t.Errorf("%s: status %d, %s", c.to, status, said.String())
		}
		lines := strings.SplitAfter(out.String(), "\n")
		if len(lines) != len(c.ends)+1 {
			t.Errorf("%s: %q", c.to, lines)
			continue
		}
		for i, want := range c.ends {
			if !strings.HasPrefix(lines[i], fmt.Sprintf("partition %d: %s digest ", i, want)) {
				t.Errorf("%s: %s", c.to, lines[i])
			}
		}
	}
}

// No restore ends inside an atomic batch: to a time, it ends before that; to a
// txid there, it is refused.
func TestARestoreDoesNotEndInsideAnAtomicBatch(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 11, 29, 8, minute, 0, 0, time.UTC) }
	place := filepath.Join(t.TempDir(), "backup")
	r, err := backup.Open(t.Context(), place, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Run(t.Context(), oldCluster{0: nil, 1: nil, 2: nil, atomicPartition: {at(0), at(10)}}, backup.RunOptions{}); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{
		"--to-time 2026-11-29T08:00:00.000000000Z": "up to txid 1, committed at 2026-11-29T08:00:00Z,",
		"--to-time 2026-11-29T08:00:00.000000001Z": "up to txid 1, committed at 2026-11-29T08:00:00Z,",
		"--to-time 2026-11-29T08:00:00.000000002Z": "up to txid 3, committed at 2026-11-29T08:00:00.000000002Z,",
		"--to-time 2026-11-29T08:10:00.000000001Z": "up to txid 4, committed at 2026-11-29T08:10:00Z,",
		"--to-txid 3=4": "up to txid 4, committed",
		"--to-txid 3=5": "--to-txid 3=5 is inside the atomic batch 5-6, which is restored as a whole or not at all: give 4 or 6",
		"--to-txid 3=6": "up to txid 6, committed",
	} {
		var out bytes.Buffer
		status := (&program{out: &out, errOut: &out}).run(t.Context(), append([]string{"restore", "--from", place, "--dry-run", "--server", "nats://127.0.0.1:1"}, strings.Fields(to)...))
		if refused := strings.Contains(want, "inside"); !strings.Contains(out.String(), want) || refused != (status == exitUsage) || !refused && status != 0 {
			t.Errorf("%s: status %d: %s, want %q", to, status, out.String(), want)
		}
	}
}

// A run that was slow because no node answered says so.
func TestWhyARunWasSlow(t *testing.T) {
	if got, want := slowRun(4400*time.Millisecond, 2*time.Second, (&backupSource{conn: new(natsConn)}).waited()), "a run took 4.4s, longer than --every 2s"; got != want {
		t.Errorf("%q", got)
	}
	source := &backupSource{conn: new(natsConn), patience: time.Minute}
	tries := 0
	err := source.again(t.Context(), func() (bool, error) {
		if tries++; tries == 1 {
			return false, nats.ErrNoResponders
		}
		return false, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slowRun(time.Minute, time.Second, source.waited()), "a run took 1m0s, longer than --every 1s; it had to wait: no node answered"; got != want {
		t.Errorf("%q", got)
	}
}
