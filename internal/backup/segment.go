package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/cantuslog/cantus/wal"
)

const (
	magic = "cantseg\x01"
	// maxSegment is about the most bytes of a segment before compression. One
	// batch can be larger.
	maxSegment = 64 << 20
	// maxBatch bounds a batch: what a node puts into one is far less.
	maxBatch = 64 << 20
)

// Segment is an object with batches of one partition, as a manifest describes
// it.
type Segment struct {
	Name string `json:"name"`
	// First and Last are its first and its last txid.
	First     uint64    `json:"first"`
	Last      uint64    `json:"last"`
	FirstTime time.Time `json:"first_time"`
	LastTime  time.Time `json:"last_time"`
	Batches   int       `json:"batches"`
	// Bytes counts the bytes of its stream of batches, Stored those of the
	// object.
	Bytes  int64 `json:"bytes"`
	Stored int64 `json:"stored"`
	// SHA256 is the hash of the object, in hexadecimal.
	SHA256 string `json:"sha256"`
	// Digest is the partition's digest after Last, in hexadecimal.
	Digest string `json:"digest"`
}

// segmentWriter makes a segment of batches that follow on each other.
type segmentWriter struct {
	partition int
	segment   Segment
	out       bytes.Buffer
	zstd      *zstd.Encoder
	digest    wal.Digest // after the last batch
}

// encoders and decoders are used again: each has buffers of some megabytes.
var (
	encoders = sync.Pool{New: func() any { e, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1)); return e }}
	decoders = sync.Pool{New: func() any { d, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1)); return d }}
)

func newSegmentWriter(partition int) *segmentWriter {
	w := &segmentWriter{partition: partition, zstd: encoders.Get().(*zstd.Encoder)}
	w.zstd.Reset(&w.out)
	return w
}

// close releases what the writer has.
func (w *segmentWriter) close() {
	w.zstd.Reset(nil)
	encoders.Put(w.zstd)
}

// add adds a batch that has been checked. digest is that of the log after it.
func (w *segmentWriter) add(b wal.Batch, digest wal.Digest) error {
	s := &w.segment
	if s.Batches == 0 {
		s.First, s.FirstTime = b.First, time.Unix(0, b.Time).UTC()
		if _, err := io.WriteString(w.zstd, magic); err != nil {
			return err
		}
	}
	data := b.Bytes()
	length := binary.AppendUvarint(nil, uint64(len(data)))
	if _, err := w.zstd.Write(length); err != nil {
		return err
	}
	if _, err := w.zstd.Write(data); err != nil {
		return err
	}
	s.Last, s.LastTime = b.Last(), lastTime(b)
	s.Batches++
	s.Bytes += int64(len(length) + len(data))
	w.digest = digest
	return nil
}

func lastTime(b wal.Batch) time.Time { return time.Unix(0, b.Time+int64(b.Count)-1).UTC() }

// finish returns the segment and its object, and makes the writer ready for the
// next one. The bytes are valid until then.
func (w *segmentWriter) finish() (Segment, []byte, error) {
	if err := w.zstd.Close(); err != nil {
		return Segment{}, nil, err
	}
	data := bytes.Clone(w.out.Bytes())
	hash := sha256.Sum256(data)
	s := w.segment
	s.Stored, s.SHA256, s.Digest = int64(len(data)), hex.EncodeToString(hash[:]), hex.EncodeToString(w.digest[:])
	s.Name = segmentName(w.partition, s)
	w.segment = Segment{}
	w.out.Reset()
	w.zstd.Reset(&w.out)
	return s, data, nil
}

func segmentName(partition int, s Segment) string {
	return fmt.Sprintf("p%d/%020d-%020d-%.8s.seg", partition, s.First, s.Last, s.SHA256)
}

// readBatches calls each for the batches in the object of a segment, in order.
// It checks the object's hash before, and each batch's checksum. Its errors
// wrap ErrDamaged, unless they come from each.
func (s Segment) readBatches(object []byte, each func(wal.Batch) error) error {
	damaged := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, s.Name, fmt.Errorf(format, args...))
	}
	if hash := sha256.Sum256(object); hex.EncodeToString(hash[:]) != s.SHA256 {
		return damaged("the object's hash is %x, the manifest says %s", hash, s.SHA256)
	}
	d := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(d)
	if err := d.Reset(bytes.NewReader(object)); err != nil {
		return damaged("%w", err)
	}
	stream, err := readLimited(d, s.Bytes+int64(len(magic)))
	if err != nil {
		return damaged("%w", err)
	}
	stream, ok := bytes.CutPrefix(stream, []byte(magic))
	if !ok {
		return damaged("it is not a segment of a version that is known")
	}
	count := 0
	for ; len(stream) > 0; count++ {
		b, rest, err := NextBatch(stream)
		if err != nil {
			return damaged("batch %d: %w", count+1, err)
		}
		if err := each(b); err != nil {
			return err
		}
		stream = rest
	}
	if count != s.Batches {
		return damaged("it has %d batches, the manifest says %d", count, s.Batches)
	}
	return nil
}

// ErrShort is returned for a stream that ends within a batch.
var ErrShort = errors.New("the stream ends within a batch")

// NextBatch splits the first batch off a stream of them, and checks its
// checksum. The batch aliases the stream.
func NextBatch(stream []byte) (b wal.Batch, rest []byte, err error) {
	length, n := binary.Uvarint(stream)
	switch {
	case n == 0:
		return b, nil, ErrShort
	case n < 0 || length > maxBatch:
		return b, nil, fmt.Errorf("a batch of more than %d bytes", maxBatch)
	case uint64(len(stream)-n) < length:
		return b, nil, ErrShort
	}
	end := n + int(length)
	b, err = wal.ParseBatch(stream[n:end])
	if err == nil && (b.Kind != wal.Transactions || b.Count == 0) {
		err = fmt.Errorf("it has %d records of kind %d, and not transactions", b.Count, b.Kind)
	}
	return b, stream[end:], err
}

// chain is a point of a log's digest chain, and goes on with its batches.
type chain struct {
	last   uint64
	digest wal.Digest
}

// add extends the chain by the next batch.
func (c *chain) add(b wal.Batch) error {
	if b.First != c.last+1 {
		return fmt.Errorf("a batch begins at txid %d, the one before it ends at %d", b.First, c.last)
	}
	c.last, c.digest = b.Last(), c.digest.Next(b.Bytes())
	return nil
}

// parseDigest decodes a digest in hexadecimal.
func parseDigest(s string) (d wal.Digest, err error) {
	b, err := hex.DecodeString(s)
	if err == nil && len(b) != len(d) {
		err = fmt.Errorf("a digest of %d bytes", len(b))
	}
	copy(d[:], b)
	return d, err
}
