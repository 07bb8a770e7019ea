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
// batch a time in the map, which is that of its first transaction.
type oldCluster map[int][]time.Time

// batchSize is how many transactions each batch has.
const batchSize = 3

// atomicPartition has atomic batches: the second and third transaction of each
// batch with an even number, and all of the others.
const atomicPartition = 3

func (o oldCluster) batches(partition int) (all []wal.Batch, end wal.Digest) {
	for i, at := range o[partition] {
		var w wal.BatchWriter
		w.Begin(wal.Transactions, uint64(i*batchSize+1), at.UnixNano(), 100)
		for k := range uint32(batchSize) {
			t := wal.Transaction{Payload: []byte("x")}
			switch {
			case partition != atomicPartition:
			case i%2 == 1:
				t.Atomic = wal.Atomic{Index: k, Size: batchSize}
			case k > 0:
				t.Atomic = wal.Atomic{Index: k - 1, Size: batchSize - 1}
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

// A restore never ends within an atomic batch.
func TestARestoreKeepsAtomicBatchesWhole(t *testing.T) {
	begin := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	place := filepath.Join(t.TempDir(), "backup")
	r, err := backup.Open(t.Context(), place, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := oldCluster{0: nil, 1: nil, 2: nil, atomicPartition: {begin, begin.Add(time.Minute)}}
	if _, err := r.Run(t.Context(), o, backup.RunOptions{}); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[int]int{1: 1, 2: 1, 3: 3, 4: 3, 5: 3, 6: 6} {
		at := begin.Add(time.Duration(to - 1))
		if to > batchSize {
			at = begin.Add(time.Minute + time.Duration(to-batchSize-1))
		}
		for _, flag := range [][]string{{"--to-txid", fmt.Sprintf("%d=%d", atomicPartition, to)}, {"--to-time", at.Format(time.RFC3339Nano)}} {
			var out, said bytes.Buffer
			status := (&program{out: &out, errOut: &said}).run(t.Context(), append([]string{"restore", "--from", place, "--dry-run", "--partition", "3"}, flag...))
			if status != 0 || !strings.Contains(out.String(), fmt.Sprintf("up to txid %d,", want)) {
				t.Errorf("%v: status %d, %s %s", flag, status, out.String(), said.String())
			}
			if is := strings.Contains(said.String(), fmt.Sprintf("txid %d is within the atomic batch", to)); is != (to != want) {
				t.Errorf("%v: %s", flag, said.String())
			}
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
