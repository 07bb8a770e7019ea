package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
)

// segment is an open segment file whose label is in place.
type segment struct {
	number uint64
	path   string
	file   File
	size   int64
	// written is where the space begins that is allocated and was never
	// written. If that is unknown it is past the segment's end.
	written int64
}

const (
	// zeroFrame is the largest frame after which zeros are written in advance,
	// zeroFrames is how many such frames they make room for, and zeroStep is
	// the most that is written at once.
	zeroFrame  = 16 << 10
	zeroFrames = 16
	zeroStep   = zeroFrame * zeroFrames
)

// writeZeros writes zeros after end, where a frame of the given size ends, for
// the sake of later frames. The first write to space that is only allocated
// changes the file's metadata. The sync then writes them as well, through the
// file system's own journal: some 20 KiB, and another flush of the disk. So a
// small frame is followed by zeros, which is what the space reads as anyway.
// The syncs of the next frames then write nothing but the frames. After a large
// frame zeros would cost more than they save.
func (s *segment) writeZeros(end, frame int64) error {
	if end <= s.written {
		return nil
	}
	s.written = end
	if frame > zeroFrame {
		return nil
	}
	n := min(frame*zeroFrames, s.size-end)
	if _, err := s.file.WriteAt(zeros[:n], end); err != nil {
		return err
	}
	s.written = end + n
	return nil
}

// openSegment opens a segment and checks its label.
func openSegment(fs FS, dir string, number uint64, flag int, id identity) (*segment, error) {
	path := filepath.Join(dir, segmentName(number))
	f, err := fs.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	s := &segment{number: number, path: path, file: f, written: math.MaxInt64}
	if err := s.check(id); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func (s *segment) check(id identity) (err error) {
	if s.size, err = s.file.Size(); err != nil {
		return err
	}
	l, err := readSegmentLabel(s.file, s.path, s.size)
	switch {
	case err != nil:
		return err
	case l.identity != id:
		return damaged(s.path, 0, "segment of another journal")
	case l.fields[0] != s.number:
		return damaged(s.path, 0, "segment says it is number %x", l.fields[0])
	case l.fields[1] != uint64(s.size):
		return damaged(s.path, s.size, "file is %d bytes long, segment %d", s.size, l.fields[1])
	}
	return nil
}

func readSegmentLabel(f File, path string, size int64) (label, error) {
	b := make([]byte, min(size, labelSize))
	if err := readFull(f, b, 0); err != nil {
		return label{}, fmt.Errorf("read %s: %w", path, err)
	}
	return decodeLabel(path, segmentMagic, b)
}

// makeSegment prepares segment number for frames: from the file spare, or as a
// new file if spare is empty. When it returns nil the label, the file's size
// and its name are durable. After an error the segment is not there under its
// name; if the directory could not be synced, that is uncertain.
func makeSegment(fs FS, dir, spare string, number uint64, size int64, id identity) (_ *segment, err error) {
	temp, flag := spare, os.O_RDWR
	if spare == "" {
		temp, flag = filepath.Join(dir, segmentTemp), os.O_RDWR|os.O_CREATE|os.O_TRUNC
	}
	f, err := fs.OpenFile(temp, flag, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make segment %x: %w", number, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make segment %x: %w", number, err), f.Close())
		}
	}()
	written, err := f.Size()
	if err != nil {
		return nil, err
	}
	if err := f.Allocate(size); err != nil {
		return nil, err
	}
	l := label{id, [4]uint64{number, uint64(size)}}
	if _, err := f.WriteAt(l.encode(segmentMagic), 0); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, segmentName(number))
	if err := fs.Rename(temp, path); err != nil {
		return nil, err
	}
	if err := fs.SyncDir(dir); err != nil {
		return nil, err
	}
	return &segment{number: number, path: path, file: f, size: size, written: max(written, labelSize)}, nil
}

// window reads a segment through a buffer that moves forward.
type window struct {
	*segment
	buf   []byte
	start int64
}

const windowSize = 1 << 20

// bytes returns the n bytes at off, which must be within the segment. They are
// valid until the next call.
func (w *window) bytes(off, n int64) ([]byte, error) {
	if off < w.start || off+n > w.start+int64(len(w.buf)) {
		size := max(n, min(windowSize, w.size-off))
		if int64(cap(w.buf)) < size {
			w.buf = make([]byte, size)
		}
		w.buf = w.buf[:size]
		w.start = off
		if err := readFull(w.file, w.buf, off); err != nil {
			w.buf = w.buf[:0]
			return nil, fmt.Errorf("read %s at offset %d: %w", w.path, off, err)
		}
	}
	return w.buf[off-w.start:][:n], nil
}

// frame returns the frame at off if it is valid and its sequence number is from
// low to high, and nil otherwise.
func (w *window) frame(c codec, off int64, low, high uint64) ([]byte, error) {
	if w.size-off < frameHeader {
		return nil, nil
	}
	b, err := w.bytes(off, frameHeader)
	if err != nil {
		return nil, err
	}
	size, seq := c.header(b)
	if seq < low || seq > high || size > w.size-off {
		return nil, nil
	}
	if b, err = w.bytes(off, size); err != nil || !c.valid(b) {
		return nil, err
	}
	return b, nil
}

// zeros is what a new segment mostly holds. A header of zeros is not valid: its
// sequence number would be the salt.
const zeroSize = 4096

var zeros = make([]byte, zeroStep)

// find searches from off on for a valid frame whose sequence number is low or,
// within reason, higher. It returns its offset, or -1.
func (w *window) find(c codec, off int64, low uint64) (int64, error) {
	const reason = 1 << 32
	high := low + reason
	for off+frameHeader <= w.size {
		n := min(windowSize, w.size-off)
		b, err := w.bytes(off, n)
		if err != nil {
			return -1, err
		}
		i := int64(0)
		for ; i+frameHeader <= n; i += frameAlign {
			if i%zeroSize == 0 && i+zeroSize <= n && bytes.Equal(b[i:i+zeroSize], zeros[:zeroSize]) {
				i += zeroSize - frameHeader // no header is wholly in there
				continue
			}
			if _, seq := c.header(b[i:]); seq < low || seq > high {
				continue
			}
			f, err := w.frame(c, off+i, low, high)
			if f != nil || err != nil {
				return off + i, err
			}
			if b, err = w.bytes(off, n); err != nil {
				return -1, err
			}
		}
		off += i
	}
	return -1, nil
}

// readFull fills b. It returns io.ErrUnexpectedEOF if the file ends earlier.
func readFull(f io.ReaderAt, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
