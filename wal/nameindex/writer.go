package nameindex

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"os"
	"runtime"
)

// yieldEvery is how many keys are written before other goroutines may go first:
// those that commit transactions are waited for.
const yieldEvery = 512

// maxBits bounds a table: 64 MiB.
const maxBits = 24

// writer writes a run. Keys are added in ascending order, then it is
// finished or given up. The first error remains.
type writer struct {
	run
	file *os.File
	out  *bufio.Writer
	err  error

	position uint64 // in the file
	table    []uint32
	places   []uint64
	number   uint32 // of the bucket that is being filled
	bucket   []byte
	rest     uint64 // of the last key in it
	list     []byte // scratch
	added    uint64 // keys
}

// newWriter begins a run with about a number of entries in a new file.
func newWriter(path string, s run, places []uint64, entries uint64) (*writer, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	w := &writer{run: s, file: f, out: bufio.NewWriterSize(f, 256<<10), places: places}
	w.path, w.salt = path, uint64(rand.Uint32())
	w.bits = uint8(min(maxBits, bits.Len64(entries/bucketEntries)))
	w.table = make([]uint32, 1<<w.bits)
	w.position = uint64(w.headSize())
	if _, err := f.Seek(w.headSize(), 0); err != nil {
		w.err = err
	}
	w.begin()
	return w, nil
}

// add adds the transactions that have a key, by their distances from the first,
// ascending.
func (w *writer) add(k Key, offsets []uint32) {
	if w.added++; w.added%yieldEvery == 0 {
		runtime.Gosched()
	}
	number, rest := w.split(k)
	for w.number != number {
		w.end()
		w.number++
		w.begin()
	}
	list, last := w.list[:0], uint32(0)
	for _, o := range offsets {
		list = binary.AppendUvarint(list, uint64(o-last))
		last = o
	}
	w.list = list
	w.entries += uint64(len(offsets))
	b := binary.AppendUvarint(w.bucket, rest-w.rest)
	w.rest = rest
	if len(list) <= longList {
		b = binary.AppendUvarint(b, uint64(len(list))<<1)
		b = binary.AppendUvarint(b, uint64(len(offsets)))
		w.bucket = append(b, list...)
		return
	}
	b = binary.AppendUvarint(b, uint64(len(list)+4)<<1|1)
	b = binary.AppendUvarint(b, uint64(len(offsets)))
	w.bucket = binary.AppendUvarint(b, w.position)
	var sum [4]byte
	binary.LittleEndian.PutUint32(sum[:], w.checksum(uint32(w.position), list))
	w.write(sum[:])
	w.write(list)
}

func (w *writer) write(b []byte) {
	if w.position += uint64(len(b)); w.position > math.MaxUint32 && w.err == nil {
		w.err = fmt.Errorf("nameindex: %s: a run has at most %d bytes", w.path, uint32(math.MaxUint32))
	}
	if w.err == nil {
		_, w.err = w.out.Write(b)
	}
}

func (w *writer) begin() { w.bucket, w.rest = append(w.bucket[:0], make([]byte, bucketHeader)...), 0 }

func (w *writer) end() {
	w.table[w.number] = uint32(w.position)
	binary.LittleEndian.PutUint32(w.bucket[4:], uint32(len(w.bucket)-bucketHeader))
	binary.LittleEndian.PutUint32(w.bucket, w.checksum(w.number, w.bucket[4:]))
	w.write(w.bucket)
}

// finish writes the rest and closes the file. If it fails the file is removed.
func (w *writer) finish() (*run, error) {
	for w.end(); int(w.number) < len(w.table)-1; w.end() {
		w.number++
		w.begin()
	}
	w.size = w.position
	head := w.marshal()
	for _, at := range w.table {
		head = binary.LittleEndian.AppendUint32(head, at)
	}
	head = append(head, w.encodePlaces(w.places)...)
	if w.err == nil {
		w.err = w.out.Flush()
	}
	if w.err == nil {
		_, w.err = w.file.WriteAt(head, 0)
	}
	if err := w.file.Close(); w.err == nil {
		w.err = err
	}
	if w.err != nil {
		_ = os.Remove(w.path)
		return nil, w.err
	}
	s := w.run
	return &s, nil
}
