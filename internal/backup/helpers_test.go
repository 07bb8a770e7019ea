package backup_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// memory is a bucket in memory. Its clock is the test's.
type memory struct {
	now func() time.Time

	mu      sync.Mutex
	objects map[string][]byte
	written map[string]time.Time
}

func newMemory(now func() time.Time) *memory {
	return &memory{now: now, objects: map[string][]byte{}, written: map[string]time.Time{}}
}

func (m *memory) Put(_ context.Context, name string, data []byte, mustBeNew bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[name]; ok && mustBeNew {
		return fs.ErrExist
	}
	m.objects[name], m.written[name] = bytes.Clone(data), m.now()
	return nil
}

func (m *memory) Get(_ context.Context, name string, _ int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.objects[name]; ok {
		return bytes.Clone(b), nil
	}
	return nil, fs.ErrNotExist
}

func (m *memory) List(_ context.Context, prefix string) (all []backup.Object, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasPrefix(name, prefix) {
			all = append(all, backup.Object{Name: name, Size: int64(len(m.objects[name])), Written: m.written[name]})
		}
	}
	return all, nil
}

func (m *memory) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

func (*memory) Close() error { return nil }

// copy returns a bucket with the same objects.
func (m *memory) copy() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{now: m.now, objects: maps.Clone(m.objects), written: maps.Clone(m.written)}
}

// names returns those of the objects that end in suffix.
func (m *memory) names(suffix string) (all []string) {
	for _, name := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasSuffix(name, suffix) {
			all = append(all, name)
		}
	}
	return all
}

// crashing is a bucket that does a number of things, and then nothing more. The
// last of them is done or not; either way it fails.
type crashing struct {
	backup.Bucket
	left int
	done bool
}

var errCrashed = errors.New("crashed")

func (c *crashing) step(do func() error) error {
	if c.left--; c.left > 0 {
		return do()
	}
	if c.left == 0 && c.done {
		_ = do() // nobody learns of it
	}
	return errCrashed
}

func (c *crashing) Put(ctx context.Context, name string, data []byte, mustBeNew bool) error {
	return c.step(func() error { return c.Bucket.Put(ctx, name, data, mustBeNew) })
}

func (c *crashing) Get(ctx context.Context, name string, limit int64) (b []byte, err error) {
	err = c.step(func() error { b, err = c.Bucket.Get(ctx, name, limit); return err })
	return b, err
}

func (c *crashing) List(ctx context.Context, prefix string) (all []backup.Object, err error) {
	err = c.step(func() error { all, err = c.Bucket.List(ctx, prefix); return err })
	return all, err
}

func (c *crashing) Delete(ctx context.Context, name string) error {
	return c.step(func() error { return c.Bucket.Delete(ctx, name) })
}

// cluster is a source with logs in memory.
type cluster struct {
	backup.Cluster
	mu   sync.Mutex
	logs []*log
}

// log is a partition's log.
type log struct {
	base, last backup.Point
	digest     wal.Digest
	batches    [][]byte
	digests    []wal.Digest // after each
	lasts      []uint64
	cursors    []subjects.CursorPosition
	history    []subjects.PastCluster
}

func newCluster(partitions int) *cluster {
	c := &cluster{Cluster: backup.Cluster{Name: "cantus", ID: "abc", Partitions: partitions}}
	for range partitions {
		zero := backup.Point{Digest: strings.Repeat("0", 64)}
		c.logs = append(c.logs, &log{base: zero, last: zero})
	}
	return c
}

// append appends a batch of transactions with payloads of some bytes.
func (c *cluster) append(partition, count, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.logs[partition]
	var w wal.BatchWriter
	first := l.last.Txid + 1
	w.BeginIn(3, first, time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).UnixNano()+int64(first)*1000, 0)
	for i := range count {
		payload := make([]byte, size)
		for j := range payload { // which zstd makes little of
			payload[j] = byte((int(first)+i)*31 + j*j*7 + j*j*j)
		}
		w.Add(&wal.Transaction{Kind: []byte("tx"), Payload: payload})
	}
	b := w.Finish()
	l.digest = l.digest.Next(b)
	l.batches, l.digests, l.lasts = append(l.batches, b), append(l.digests, l.digest), append(l.lasts, first+uint64(count)-1)
	l.last = backup.Point{Txid: first + uint64(count) - 1, Digest: hex.EncodeToString(l.digest[:])}
}

// trim trims the first batches of a log. They stay for checkBackup.
func (c *cluster) trim(partition, batches int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.logs[partition]
	l.base = backup.Point{Txid: l.lasts[batches-1], Digest: hex.EncodeToString(l.digests[batches-1][:])}
}

func (c *cluster) setCursor(partition int, name string, txid uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.logs[partition]
	l.cursors = slices.DeleteFunc(slices.Clone(l.cursors), func(p subjects.CursorPosition) bool { return p.Name == name })
	l.cursors = append(l.cursors, subjects.CursorPosition{Name: name, Txid: txid, Time: time.Unix(int64(txid), 0).UTC()})
	slices.SortFunc(l.cursors, func(a, b subjects.CursorPosition) int { return strings.Compare(a.Name, b.Name) })
}

// The methods of a backup.Source.

func (c *cluster) describe() backup.Cluster { return c.Cluster }

type source struct{ *cluster }

func (s source) Cluster(ctx context.Context) (backup.Cluster, error) {
	return s.describe(), ctx.Err()
}

func (s source) Cursors(ctx context.Context, partition int) ([]subjects.CursorPosition, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logs[partition].cursors, ctx.Err()
}

func (s source) State(ctx context.Context, partition int) (backup.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[partition]
	return backup.State{Base: l.base, Last: l.last, History: l.history}, ctx.Err()
}

func (s source) Batches(ctx context.Context, partition int, from, to uint64, each func(wal.Batch) error) error {
	s.mu.Lock()
	l := *s.logs[partition]
	s.mu.Unlock()
	if from <= l.base.Txid {
		return errors.New("trimmed")
	}
	for _, data := range l.batches {
		b, err := wal.ParseBatch(data)
		if err != nil {
			return err
		}
		if b.Last() < from {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := each(b); err != nil {
			return err
		}
		if b.Last() >= to {
			return nil
		}
	}
	return fmt.Errorf("there is no txid %d", to)
}

// clock is a test's.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func newClock() *clock { return &clock{time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)} }

// mustRun backs a cluster up.
func mustRun(t *testing.T, r *backup.Repository, c *cluster) backup.Result {
	t.Helper()
	result, err := r.Run(t.Context(), source{c}, backup.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// checkBackup is the oracle: the newest manifest verifies, and its logs are
// beginnings of the cluster's. It returns the manifest, nil for none.
func checkBackup(t *testing.T, b backup.Bucket, c *cluster) *backup.Manifest {
	t.Helper()
	r := backup.New(b, backup.Options{})
	m, err := r.Newest(t.Context())
	if errors.Is(err, backup.ErrNone) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Partitions {
		l := c.logs[p.Partition]
		i := 0
		for i < len(l.lasts) && l.lasts[i] <= p.Base.Txid {
			i++
		}
		err := r.Verify(t.Context(), m, p.Partition, func(b wal.Batch) {
			if i < len(l.batches) && !bytes.Equal(b.Bytes(), l.batches[i]) {
				t.Fatalf("the batch up to %d is not the log's", b.Last())
			}
			i++
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, cursor := range p.Cursors {
			if cursor.Txid > p.Last.Txid {
				t.Fatalf("%+v is past %d", cursor, p.Last.Txid)
			}
		}
	}
	return m
}

// level fails the test unless a manifest has everything that a cluster has.
func level(t *testing.T, m *backup.Manifest, c *cluster) {
	t.Helper()
	for i, l := range c.logs {
		p, ok := m.Find(i)
		if !ok || p.Last.Txid != l.last.Txid || p.Last.Digest != l.last.Digest || len(p.Cursors) != len(l.cursors) {
			t.Fatalf("partition %d is at %d with %d cursors, the log at %d with %d", i, p.Last.Txid, len(p.Cursors), l.last.Txid, len(l.cursors))
		}
	}
}
