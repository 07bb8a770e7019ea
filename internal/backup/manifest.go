package backup

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// formatVersion is that of manifests.
const formatVersion = 1

// Manifest describes a backup.
type Manifest struct {
	Format int `json:"format"`
	// ID is the backup's, in all of its manifests, wherever they are copied.
	ID string `json:"id"`
	// Writer is a random name of the process that wrote it, "" for a version
	// that had none. Copies of a backup that go on have others.
	Writer string `json:"writer,omitempty"`
	// Generation counts the manifests of the repository.
	Generation uint64  `json:"generation"`
	Cluster    Cluster `json:"cluster"`
	// Version is that of the program that wrote it.
	Version string    `json:"version"`
	Taken   time.Time `json:"taken"`
	// Partitions are those that were backed up, in order.
	Partitions []Partition `json:"partitions"`
}

// Cluster is the cluster whose logs are backed up.
type Cluster struct {
	Name       string `json:"name"`
	ID         string `json:"id"`
	Partitions int    `json:"partitions"`
}

// Partition is the log of one partition.
type Partition struct {
	Partition int `json:"partition"`
	// Base is the point before the oldest transaction, Last the newest one. The
	// time of Base is not known.
	Base Point `json:"base"`
	Last Point `json:"last"`
	// Segments are in order, and each begins where the one before it ends.
	Segments []Segment `json:"segments"`
	// Cursors are in the order of their names. None is past Last.
	Cursors []subjects.CursorPosition `json:"cursors"`
	// Namespace is what the partition belonged to, nil for none.
	Namespace *Namespace `json:"namespace,omitempty"`
	// History lists the clusters in which the log began, oldest first.
	History []subjects.PastCluster `json:"history,omitempty"`
	// Damaged names a segment that a run could not read, "" for none. Each run
	// reads it again, and fails while it is damaged.
	Damaged string `json:"damaged,omitempty"`
}

// Namespace is what a partition is in a namespace. A restore does not make it:
// whoever restores is told.
type Namespace struct {
	Name   string                   `json:"name"`
	Number int                      `json:"number"` // of the partition there
	Limits subjects.NamespaceLimits `json:"limits,omitzero"`
}

// Point is a point of a log's digest chain.
type Point struct {
	Txid   uint64    `json:"txid"`
	Digest string    `json:"digest"` // in hexadecimal
	Time   time.Time `json:"time,omitzero"`
}

func (p Point) chain() (chain, error) {
	d, err := parseDigest(p.Digest)
	return chain{p.Txid, d}, err
}

// Find returns the log of a partition.
func (m *Manifest) Find(partition int) (Partition, bool) {
	i, ok := slices.BinarySearchFunc(m.Partitions, partition, func(p Partition, n int) int { return cmp.Compare(p.Partition, n) })
	if !ok {
		return Partition{}, false
	}
	return m.Partitions[i], true
}

// with returns the manifest with the log of one more partition, or another log
// of it.
func (m Manifest) with(p Partition) Manifest {
	m.Partitions = slices.DeleteFunc(slices.Clone(m.Partitions), func(o Partition) bool { return o.Partition == p.Partition })
	m.Partitions = append(m.Partitions, p)
	slices.SortFunc(m.Partitions, func(a, b Partition) int { return cmp.Compare(a.Partition, b.Partition) })
	return m
}

// Transactions returns how many transactions the log has.
func (p Partition) Transactions() uint64 { return p.Last.Txid - p.Base.Txid }

// Sizes returns the bytes of the log's batches, and of its objects.
func (p Partition) Sizes() (bytes, stored int64) {
	for _, s := range p.Segments {
		bytes, stored = bytes+s.Bytes, stored+s.Stored
	}
	return bytes, stored
}

// encode returns the manifest as it is stored.
func (m *Manifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	return fmt.Appendf(b, "%x\n", sha256.Sum256(b)), nil
}

// hashLine is the length of a manifest's last line.
const hashLine = 2*sha256.Size + 1

// decodeManifest decodes the manifest of a generation, and checks all that can
// be checked without its segments. The error wraps ErrDamaged or ErrNewer.
func decodeManifest(generation uint64, b []byte) (*Manifest, error) {
	damaged := func(err error) error { return fmt.Errorf("%w: %s: %w", ErrDamaged, manifestName(generation), err) }
	cut := len(b) - hashLine
	if cut < 1 || !bytes.Equal(b[cut:], fmt.Appendf(nil, "%x\n", sha256.Sum256(b[:cut]))) {
		return nil, damaged(errors.New("the checksum is wrong"))
	}
	m := new(Manifest)
	if err := json.Unmarshal(b[:cut], m); err != nil {
		return nil, damaged(err)
	}
	if m.Format > formatVersion {
		return nil, fmt.Errorf("%w: %s has the format %d, and %d is known", ErrNewer, manifestName(generation), m.Format, formatVersion)
	}
	if m.Generation != generation {
		return nil, damaged(fmt.Errorf("it is of generation %d", m.Generation))
	}
	if m.ID != "" && subjects.CheckCursor(m.ID) != nil {
		return nil, damaged(fmt.Errorf("the id %q is not a name", m.ID))
	}
	if m.Writer != "" && subjects.CheckCursor(m.Writer) != nil {
		return nil, damaged(fmt.Errorf("the writer %q is not a name", m.Writer))
	}
	for i, p := range m.Partitions {
		if p.Partition < 0 || p.Partition >= subjects.MaxPartitions || i > 0 && p.Partition <= m.Partitions[i-1].Partition {
			return nil, damaged(fmt.Errorf("partition %d is out of order", p.Partition))
		}
		if err := p.check(); err != nil {
			return nil, damaged(fmt.Errorf("partition %d: %w", p.Partition, err))
		}
	}
	return m, nil
}

// check checks that the log's segments follow on each other.
func (p *Partition) check() error {
	if _, err := parseDigest(p.Base.Digest); err != nil {
		return fmt.Errorf("the base: %w", err)
	}
	last, digest := p.Base.Txid, p.Base.Digest
	for _, s := range p.Segments {
		switch {
		case s.First != last+1 || s.Last < s.First:
			return fmt.Errorf("segment %s has txids %d to %d after %d", s.Name, s.First, s.Last, last)
		case s.Batches < 1 || s.Bytes < 1 || s.Stored < 1 || s.Bytes > maxSegment+2*maxBatch || s.Stored > maxSegment+2*maxBatch:
			return fmt.Errorf("segment %s has %d batches in %d bytes, and %d stored", s.Name, s.Batches, s.Bytes, s.Stored)
		case s.Name != segmentName(p.Partition, s):
			return fmt.Errorf("segment %q is not named like its content", s.Name)
		}
		if _, err := parseDigest(s.SHA256); err != nil {
			return fmt.Errorf("segment %s: the hash: %w", s.Name, err)
		}
		if _, err := parseDigest(s.Digest); err != nil {
			return fmt.Errorf("segment %s: %w", s.Name, err)
		}
		last, digest = s.Last, s.Digest
	}
	if p.Last.Txid != last || p.Last.Digest != digest {
		return fmt.Errorf("the log ends at txid %d, its segments at %d", p.Last.Txid, last)
	}
	if n := p.Namespace; n != nil && (subjects.CheckKind(n.Name) != nil || n.Number < 0 || n.Number >= subjects.MaxPartitions) {
		return fmt.Errorf("it can't be partition %d of a namespace %q", n.Number, n.Name)
	}
	for i, c := range p.Cursors {
		if c.Txid > last || subjects.CheckCursor(c.Name) != nil || i > 0 && c.Name <= p.Cursors[i-1].Name {
			return fmt.Errorf("cursor %q at %d, of %d transactions", c.Name, c.Txid, last)
		}
	}
	return nil
}
