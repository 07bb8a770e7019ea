package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// FuzzNextBatch splits a stream of batches as it comes from a node or out of a
// segment: each batch is the bytes that were there.
func FuzzNextBatch(f *testing.F) {
	var w wal.BatchWriter
	w.Begin(wal.Transactions, 1, 1, 0)
	w.Add(&wal.Transaction{Kind: []byte("tx"), Payload: []byte("hi")})
	b := w.Finish()
	one := append(binary.AppendUvarint(nil, uint64(len(b))), b...)
	for _, s := range [][]byte{nil, one, append(one[:len(one):len(one)], one...), one[:10], {0x80}, bytes.Repeat([]byte{0xff}, 11), {0}} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		var again []byte
		for rest := stream; len(rest) > 0; {
			b, next, err := NextBatch(rest)
			if err != nil {
				return
			}
			if b.Kind != wal.Transactions || b.Count == 0 || len(next) >= len(rest) {
				t.Fatalf("%+v, and %d bytes of %d are left", b, len(next), len(rest))
			}
			if !bytes.HasSuffix(rest[:len(rest)-len(next)], b.Bytes()) {
				t.Fatal("the batch is not the stream's")
			}
			again, rest = append(again, b.Bytes()...), next
		}
		if len(again) >= len(stream) && len(stream) > 0 {
			t.Fatalf("%d bytes of batches in %d", len(again), len(stream))
		}
	})
}

// FuzzManifest decodes a manifest with the right checksum.
func FuzzManifest(f *testing.F) {
	good := Manifest{Format: 1, Generation: 7}
	text, err := json.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"format":2,"generation":7}`))
	f.Add([]byte(`{"format":1,"generation":7,"partitions":[{"partition":0,"segments":[{"name":"../../etc/passwd","first":1,"last":2}]}]}`))
	f.Add([]byte(`{"format":1,"generation":7,"partitions":[{"partition":1},{"partition":0}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := decodeManifest(7, fmt.Appendf(text[:len(text):len(text)], "%x\n", sha256.Sum256(text)))
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Fatal(err)
			}
			return
		}
		for _, p := range m.Partitions {
			for _, s := range p.Segments {
				if s.Name != segmentName(p.Partition, s) || bytes.ContainsAny([]byte(s.Name[3:]), "\\") || s.First > s.Last || s.Last > p.Last.Txid {
					t.Fatalf("%+v", s)
				}
			}
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeManifest(7, again); err != nil || !reflect.DeepEqual(m, back) {
			t.Fatalf("%v: %+v, and encoded again %+v", err, m, back)
		}
	})
}

// FuzzSegment reads an object that has the hash of its manifest.
func FuzzSegment(f *testing.F) {
	w := newSegmentWriter(0)
	var bw wal.BatchWriter
	bw.Begin(wal.Transactions, 1, 1, 0)
	bw.Add(&wal.Transaction{Kind: []byte("tx"), Payload: []byte("hi")})
	b, err := wal.ParseBatch(bw.Finish())
	if err != nil {
		f.Fatal(err)
	}
	if err := w.add(b, wal.Digest{}.Next(b.Bytes())); err != nil {
		f.Fatal(err)
	}
	s, object, err := w.finish()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(object, s.Bytes, 1)
	f.Add(object, s.Bytes-1, 1)
	f.Add(object[:len(object)-3], s.Bytes, 1)
	f.Add([]byte{}, int64(0), 0)
	f.Fuzz(func(t *testing.T, object []byte, size int64, batches int) {
		hash := sha256.Sum256(object)
		size &= 1<<20 - 1 // as a checked manifest bounds it
		s := Segment{Name: "p0/x.seg", Bytes: size, Batches: batches, SHA256: hex.EncodeToString(hash[:])}
		read := int64(0)
		err := s.readBatches(object, func(b wal.Batch) error { read += int64(len(b.Bytes())); return nil })
		if err != nil && !errors.Is(err, ErrDamaged) || read > size {
			t.Fatalf("%d bytes of %d: %v", read, size, err)
		}
	})
}
