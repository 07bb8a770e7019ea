package nameindex

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
)

// The file of a run. All numbers are little-endian.
//
//	header   88 bytes, see marshal
//	table    for each bucket its position in the file, 4 bytes
//	places   for each transaction whose number is a multiple of placeEvery the
//	         index of its entry in the log, 8 bytes; a checksum, 4 bytes
//	buckets, and lists that are too long for theirs, by their keys
//
// A bucket is the checksum of its number and of all that follows in it, 4
// bytes; the length of what follows, 4 bytes; and for each of its keys,
// ascending:
//
//	uvarint  the rest of the key, less that of the key before
//	uvarint  the length of its list in bytes, times two, plus one if the list
//	         is outside
//	uvarint  the number of transactions
//	the list, or the list's position as a uvarint
//
// A list has a uvarint for each transaction: its distance from the one before
// it, for the first its distance from the run's first. One that is outside
// has a checksum of its position and itself before it, 4 bytes.
const (
	magic         = "cantusi3"
	headerSize    = 88
	bucketHeader  = 8
	bucketEntries = 32  // on average
	longList      = 512 // bytes
)

// DamageError is the error of a search that meets a damaged run.
type DamageError struct {
	Path  string
	First uint64 // the first transaction of the run, 0 if it is not known
	Where string
	Err   error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("nameindex: run %s is damaged: %s: %v", e.Path, e.Where, e.Err)
}

func (e *DamageError) Unwrap() error { return e.Err }

// run is what is kept in memory of a run.
type run struct {
	path        string
	first, last uint64
	entries     uint64
	seed, label uint64
	stamp       uint64
	size        uint64
	salt        uint64 // is part of each checksum
	bits        uint8  // of a bucket's number
}

func (s *run) fields() []*uint64 {
	return []*uint64{&s.first, &s.last, &s.entries, &s.seed, &s.label, &s.stamp, &s.size, &s.salt}
}

func (s *run) marshal() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	b[8] = s.bits
	for i, v := range s.fields() {
		binary.LittleEndian.PutUint64(b[16+8*i:], *v)
	}
	binary.LittleEndian.PutUint32(b[headerSize-8:], checksum(0, b[:headerSize-8]))
	return b
}

// openRun reads the header of a run.
func openRun(path string) (*run, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s := &run{path: path}
	var b [headerSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return nil, s.damaged("header", err)
	}
	switch {
	case string(b[:8]) != magic:
		return nil, s.damaged("header", errors.New("it is of another kind or version"))
	case binary.LittleEndian.Uint32(b[headerSize-8:]) != checksum(0, b[:headerSize-8]):
		return nil, s.damaged("header", errChecksum)
	}
	s.bits = b[8]
	for i, v := range s.fields() {
		*v = binary.LittleEndian.Uint64(b[16+8*i:])
	}
	if s.bits > maxBits || s.first == 0 || s.last < s.first || s.last-s.first >= maxRun {
		return nil, s.damaged("header", errors.New("its numbers are out of range"))
	}
	if s.size != uint64(info.Size()) || int64(s.size) < s.headSize() {
		return nil, s.damaged("header", fmt.Errorf("the file has %d bytes, and not %d", info.Size(), s.size))
	}
	return s, nil
}

var errChecksum = errors.New("wrong checksum")

func (s *run) damaged(where string, err error) error {
	return &DamageError{s.path, s.first, where, err}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the checksum of a part of the run. It differs from that of
// the same bytes elsewhere, or in another run whose blocks a file system gives
// this one after a power cut.
func (s *run) checksum(n uint32, b []byte) uint32 { return checksum(uint32(s.salt)^n, b) }

// checksum returns the checksum of a number and bytes.
func checksum(n uint32, b []byte) uint32 {
	var head [4]byte
	binary.LittleEndian.PutUint32(head[:], n)
	return crc32.Update(crc32.Update(0, castagnoli, head[:]), castagnoli, b)
}

// count returns how many transactions the run has.
func (s *run) count() uint64 { return s.last - s.first + 1 }

// placesAt returns the position of the places.
func (s *run) placesAt() int64 { return headerSize + 4<<s.bits }

// headSize returns the size of the header, the table and the places.
func (s *run) headSize() int64 { return s.placesAt() + 8*int64(s.placeCount()) + 4 }

// openedRun is a run whose file is open.
type openedRun struct {
	*run
	file io.ReaderAt
	// window and table, if not nil, are for reading the whole file from its
	// beginning on: it is read in large pieces.
	window *window
	table  []byte
}

// scratch returns memory for a bucket of the usual size. What reads the whole
// file reads one after the other, and uses it again.
func (s openedRun) scratch() []byte {
	if s.window == nil {
		return make([]byte, bucketGuess)
	}
	if s.window.bucket == nil {
		s.window.bucket = make([]byte, bucketGuess)
	}
	return s.window.bucket
}

// bucketGuess is how many bytes of a bucket are read at first.
const bucketGuess = 1024

// openWhole opens the file for reading all of it. It is to be closed.
func (s *run) openWhole() (openedRun, io.Closer, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return openedRun{}, nil, err
	}
	opened, err := s.whole(f)
	if err != nil {
		return opened, nil, errors.Join(err, f.Close())
	}
	return opened, f, nil
}

// whole returns the run for reading all of it from its open file.
func (s *run) whole(file io.ReaderAt) (openedRun, error) {
	opened := openedRun{run: s, file: file, window: &window{}, table: make([]byte, 4<<s.bits)}
	if _, err := file.ReadAt(opened.table, headerSize); err != nil {
		return opened, s.damaged("table", err)
	}
	return opened, nil
}

// window is a piece of a file.
type window struct {
	bytes  []byte
	at     int64
	bucket []byte // scratch
}

const windowSize = 256 << 10

// readAt reads like [os.File.ReadAt].
func (s openedRun) readAt(b []byte, at int64) (int, error) {
	w := s.window
	if w == nil || len(b) > windowSize/2 {
		return s.file.ReadAt(b, at)
	}
	if at < w.at || at+int64(len(b)) > w.at+int64(len(w.bytes)) {
		w.bytes = slices.Grow(w.bytes[:0], windowSize)[:windowSize]
		n, err := s.file.ReadAt(w.bytes, at)
		w.bytes, w.at = w.bytes[:n], at
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
	}
	n := copy(b, w.bytes[at-w.at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (s openedRun) find(k Key) (list, error) {
	number, rest := s.split(k)
	groups, err := s.bucket(number)
	if err != nil {
		return list{}, err
	}
	for g := range groups.all() {
		if g.rest == rest {
			return list{g.count, func() ([]uint32, error) { return s.list(g) }}, nil
		}
		if g.rest > rest {
			break
		}
	}
	if groups.err != nil {
		return list{}, s.damaged(fmt.Sprintf("bucket %d", number), groups.err)
	}
	return list{}, nil
}

// split returns the number of a key's bucket, and the rest of the key.
func (s *run) split(k Key) (bucket uint32, rest uint64) {
	return uint32(uint64(k) >> (64 - s.bits)), uint64(k) << s.bits >> s.bits >> offsetBits
}

// join is the reverse of split.
func (s *run) join(bucket uint32, rest uint64) Key {
	return Key(uint64(bucket)<<(64-s.bits) | rest<<offsetBits)
}

// bucket reads a bucket.
func (s openedRun) bucket(number uint32) (*groups, error) {
	bad := func(err error) error { return s.damaged(fmt.Sprintf("bucket %d", number), err) }
	var at [4]byte
	if s.table != nil {
		copy(at[:], s.table[4*number:])
	} else if _, err := s.file.ReadAt(at[:], headerSize+4*int64(number)); err != nil {
		return nil, bad(err)
	}
	position := int64(binary.LittleEndian.Uint32(at[:]))
	if position < s.headSize() {
		return nil, bad(errors.New("wrong position"))
	}
	b := s.scratch()
	n, err := s.readAt(b, position)
	if n < bucketHeader {
		return nil, bad(err)
	}
	size := int64(binary.LittleEndian.Uint32(b[4:])) + bucketHeader
	if size > int64(s.size)-position {
		return nil, bad(errors.New("wrong length"))
	}
	if size > int64(n) {
		b = make([]byte, size)
		if _, err := s.readAt(b, position); err != nil {
			return nil, bad(err)
		}
	}
	b = b[:size]
	if binary.LittleEndian.Uint32(b) != s.checksum(number, b[4:]) {
		return nil, bad(errChecksum)
	}
	return &groups{left: b[bucketHeader:]}, nil
}

// group is the transactions of one key.
type group struct {
	rest    uint64
	count   int
	size    int    // of the list
	inline  []byte // the list, nil if it is outside
	outside int64  // its position
}

// groups is what is left of a bucket.
type groups struct {
	left []byte
	err  error
}

// all iterates over the bucket, and sets err if it is not well formed.
func (g *groups) all() func(yield func(group) bool) {
	return func(yield func(group) bool) {
		for rest := uint64(0); len(g.left) > 0; {
			next := g.next(rest)
			if g.err != nil || !yield(next) {
				return
			}
			rest = next.rest
		}
	}
}

// next returns the group after the one with a rest, 0 for the first. It sets
// err if the bucket is not well formed.
func (g *groups) next(rest uint64) (next group) {
	next.rest = rest + g.uvarint()
	size := g.uvarint()
	next.count, next.size = int(g.uvarint()), int(size>>1)
	if size&1 == 1 {
		next.outside = int64(g.uvarint())
	} else if next.size > len(g.left) {
		g.err = io.ErrUnexpectedEOF
	} else {
		next.inline, g.left = g.left[:next.size:next.size], g.left[next.size:]
	}
	return next
}

func (g *groups) uvarint() uint64 {
	v, n := binary.Uvarint(g.left)
	if n <= 0 {
		g.err, g.left = io.ErrUnexpectedEOF, nil
		return 0
	}
	g.left = g.left[n:]
	return v
}

// list decodes the list of a group.
func (s openedRun) list(g group) ([]uint32, error) {
	return s.appendList(make([]uint32, 0, min(g.count, g.size)), g)
}

// appendList decodes the list of a group.
func (s openedRun) appendList(out []uint32, g group) ([]uint32, error) {
	b := g.inline
	if g.outside != 0 {
		if int64(g.size)+g.outside > int64(s.size) {
			return nil, s.damaged("list", errors.New("wrong length"))
		}
		b = make([]byte, g.size)
		if _, err := s.readAt(b, g.outside); err != nil {
			return nil, s.damaged("list", err)
		}
		if len(b) < 4 || binary.LittleEndian.Uint32(b) != s.checksum(uint32(g.outside), b[4:]) {
			return nil, s.damaged("list", errChecksum)
		}
		b = b[4:]
	}
	before := len(out)
	for at := uint64(0); len(b) > 0; {
		d, n := binary.Uvarint(b)
		if at += d; n <= 0 || at >= s.count() {
			return nil, s.damaged("list", io.ErrUnexpectedEOF)
		}
		out, b = append(out, uint32(at)), b[n:]
	}
	if n := len(out) - before; n != g.count {
		return nil, s.damaged("list", fmt.Errorf("%d transactions, and not %d", n, g.count))
	}
	return out, nil
}
