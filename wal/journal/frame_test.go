package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"reflect"
	"testing"
)

// bytesFile is a read-only file.
type bytesFile struct{ *bytes.Reader }

func (bytesFile) WriteAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }
func (bytesFile) Close() error                       { return nil }
func (bytesFile) Sync() error                        { return nil }
func (bytesFile) Allocate(int64) error               { return nil }
func (bytesFile) Truncate(int64) error               { return nil }
func (f bytesFile) Size() (int64, error)             { return f.Reader.Size(), nil }

func sampleOps() []Op {
	return []Op{
		{Key: []byte("a"), Value: []byte("one")},
		{Key: []byte("b"), Delete: true},
		{Key: []byte{}, Value: []byte{}},
		{Key: bytes.Repeat([]byte("k"), 200), Value: bytes.Repeat([]byte("v"), 300)},
	}
}

func TestFrameRoundTrip(t *testing.T) {
	c := newCodec(0x1234567890abcdef)
	ops := sampleOps()
	f := c.frame(nil, 7, ops[:1], nil, ops[1:])
	if got, want := int64(len(f)), frameSize(len(ops), opsSize(ops)); got != want {
		t.Errorf("%d bytes, foretold %d", got, want)
	}
	size, seq := c.header(f)
	if size != int64(len(f)) || seq != 7 || !c.valid(f) {
		t.Fatalf("size %d, sequence number %d, valid %v", size, seq, c.valid(f))
	}
	got, err := decodeOps(frameBody(f))
	if err != nil || !reflect.DeepEqual(got, ops) {
		t.Errorf("got %v, %v", got, err)
	}
	if newCodec(0x1234567890abcdee).valid(f) {
		t.Error("valid under another salt")
	}
}

func FuzzDecodeOps(f *testing.F) {
	f.Add(frameBody(newCodec(1).frame(nil, 1, sampleOps())))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{1, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0xff, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		ops, err := decodeOps(body)
		if err != nil {
			return
		}
		frame := newCodec(1).frame(nil, 1, ops)
		if !bytes.Equal(frameBody(frame), body) {
			t.Errorf("%x decodes, and encodes to %x", body, frameBody(frame))
		}
	})
}

// FuzzSegment reads arbitrary bytes as a segment: only frames that the codec
// made may be read, whatever is around them.
func FuzzSegment(f *testing.F) {
	c := newCodec(99)
	good := make([]byte, labelBlock)
	good = append(good, c.frame(nil, 1, sampleOps())...)
	good = append(good, c.frame(nil, 2, sampleOps()[:1])...)
	good = append(good, c.seal(3)...)
	f.Add(good[labelBlock:])
	f.Add(good[labelBlock : len(good)-20])
	f.Fuzz(func(t *testing.T, content []byte) {
		content = append(make([]byte, labelBlock), content...)
		r := &recovery{codec: c, ck: checkpoint{first: 1, base: 1, last: stillOpen}}
		r.segments = []*segment{{number: 1, path: "x", file: bytesFile{bytes.NewReader(content)}, size: int64(len(content))}}
		at := labelBlock
		err := r.walk(func(seq uint64, body []byte) error {
			n := int(alignUp(int64(frameHeader + len(body))))
			if !c.valid(content[at:at+n]) || !bytes.Contains(content[at:at+n], body) {
				t.Errorf("frame %d is not in the file", seq)
			}
			at += n
			return nil
		})
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzLabel(f *testing.F) {
	f.Add(checkpoint{first: 1, base: 2, released: 3, last: stillOpen}.encode(), false)
	f.Add(label{fields: [4]uint64{1, 8192}}.encode(segmentMagic), true)
	f.Fuzz(func(t *testing.T, b []byte, isSegment bool) {
		if isSegment {
			if l, err := decodeLabel("x", segmentMagic, b); err == nil && !bytes.Equal(l.encode(segmentMagic), b[:labelSize]) {
				t.Errorf("%x accepted", b)
			}
			return
		}
		if c, err := decodeCheckpoint("x", b); err == nil && !bytes.Equal(c.encode(), b) {
			t.Errorf("%x accepted", b)
		}
	})
}

// TestBodyBounds tries lengths that would overflow if they were trusted.
func TestBodyBounds(t *testing.T) {
	huge := binary.AppendUvarint(nil, math.MaxUint64)
	for _, body := range [][]byte{
		nil, {0}, {1}, {3, 1, 1}, {1, 0x80, 0}, huge,
		append([]byte{1}, huge...),
		append(append([]byte{1, 2}, huge...), 'k'),
		append(append([]byte{1}, binary.AppendUvarint(nil, math.MaxUint64-1)...), append(huge, 'k')...),
		{1, 2, 0, 'k', 'x'},
	} {
		if ops, err := decodeOps(body); err == nil {
			t.Errorf("%x is decoded as %v", body, ops)
		}
	}
}
