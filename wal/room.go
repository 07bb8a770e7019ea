package wal

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

// Badger maps its files and writes by copying into the mapping. It sets their
// length in advance but does not allocate their blocks. A copy into a page for
// which the file system has no block ends the process with SIGBUS, on one of
// Badger's goroutines, where it can't be handled. So the store reserves the
// space before Badger writes:
//
//   - Store.prepare allocates blocks of the newest value log and the newest
//     memtable log, a step at a time, before each write to Badger.
//   - A write after which Badger may begin a new file, or write or merge
//     tables, is allowed only while floor bytes are free beyond its own size.
//   - Everything else that makes Badger write (opening, closing, collecting
//     value logs) checks the free space first.
//
// A file that Badger begins in between is mappedFiles' part: a table, or the
// first bytes of a log.
//
// Without enough space the frames stay in memory and in the journal, whose
// segments are allocated, and entries are refused with ErrNoSpace until there
// is space.

// room knows how much of Badger's newest files is allocated. Store.badgerWrite
// guards all fields except dir, free and floor, which don't change.
type room struct {
	dir   string
	free  func(dir string) (int64, error)
	floor int64
	vlog  growing
	mem   growing
	// replayBytes is how many bytes the next start writes again: see nextStart.
	replayBytes *atomic.Int64
	mapped      *mappedFiles
	// memtables is how many memtable logs there are: one for the memtable that
	// is written to, and one for each that is not flushed yet.
	memtables int
}

// growing is the newest file of one of Badger's two kinds of logs.
type growing struct {
	name   string // a format for the number
	number int
	step   int64 // the most that is allocated beyond a write
	used   int64 // upper bound of the bytes written to it; -1 if unknown
	held   int64 // bytes that are allocated
	// Once load reaches limit Badger begins the next file. For a value log,
	// load is the bytes written to it; for a memtable its memory, at most
	// weight times those.
	load, limit, weight int64
}

// valueLogName is the format of a value log's name.
const valueLogName = "%06d.vlog"

const (
	// firstStep is how much is allocated in advance in an empty file. The step
	// grows with the file's content.
	firstStep = 256 << 10
	// folioBytes is the most that the page cache handles as one, with pages of
	// 4 KiB. A copy into one page of a folio needs blocks for the whole folio.
	folioBytes = 2 << 20
	// spareRoom is the space for everything small: manifest, checkpoint,
	// directories.
	spareRoom = 4 << 20
	// spareInodes is how many files Badger and the journal may need to make.
	spareInodes = 16
	// aheadRoom must stay free when files are allocated in advance.
	aheadRoom = 32 << 20
	// discardRoom is the size of Badger's file of deleted bytes, for the first
	// 4,096 value logs.
	discardRoom = 64 << 10

	// The most that an entry takes in addition to its key and value, in a log
	// file and in the memtable's memory, and the size of a pointer into the
	// value log.
	logRoom     = 40
	nodeRoom    = 140
	pointerRoom = 16
)

// demand is the most that a write to Badger takes, in bytes: in the value log,
// in the memtable's log, and in the memtable.
type demand struct{ vlog, mem, memory int64 }

// put adds a key and its value. Values of threshold bytes or more go to the
// value log.
func (d *demand) put(key, value int, threshold int64) {
	if int64(value) >= threshold {
		d.vlog += int64(key+value) + logRoom
		value = pointerRoom
	}
	d.mem += int64(key+value) + logRoom
	d.memory += int64(key+value) + nodeRoom
}

// newRoom returns the room of a Badger that was just opened, with new files.
func newRoom(o Options, b badger.Options, mapped *mappedFiles, replayBytes *atomic.Int64) (*room, error) {
	r := &room{
		replayBytes: replayBytes, mapped: mapped, dir: b.Dir, free: o.FreeSpace, floor: floorOf(b),
		vlog: growing{name: valueLogName, limit: b.ValueLogFileSize, step: 8 << 20, weight: 1},
		mem:  growing{name: "%05d.mem", limit: b.MemTableSize, step: 4 << 20, weight: 5},
	}
	if err := r.measure(); err != nil {
		return nil, err
	}
	err := allocate(filepath.Join(r.dir, "DISCARD"), discardRoom)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return r, err
}

// floorOf returns how many bytes must be free for Badger to begin new files: a
// memtable becomes a table, which is merged with others.
func floorOf(b badger.Options) int64 { return 2*b.MemTableSize + spareRoom }

// measure finds out how much is in Badger's newest files, after Badger has
// written anything that take has not counted.
func (r *room) measure() error {
	err := r.follow()
	r.vlog.measure(r.dir)
	r.mem.measure(r.dir)
	return err
}

// follow moves on to Badger's newest files.
func (r *room) follow() error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	r.memtables = 0
	for _, g := range []*growing{&r.vlog, &r.mem} {
		last := g.number
		for _, e := range entries {
			stem, ok := strings.CutSuffix(e.Name(), filepath.Ext(g.name))
			n, err := strconv.Atoi(stem)
			if !ok || err != nil {
				continue
			}
			g.number = max(g.number, n)
			if g == &r.mem {
				r.memtables++
			}
		}
		if g.number != last {
			g.held = 0
			g.measure(r.dir)
		}
	}
	return nil
}

func (g *growing) measure(dir string) {
	g.used = writtenBytes(g.path(dir))
	g.load = g.used * g.weight
}

func (g *growing) path(dir string) string { return filepath.Join(dir, fmt.Sprintf(g.name, g.number)) }

// take reserves the space for a write, which must come next. The error wraps
// ErrNoSpace if there is none.
func (r *room) take(d demand) error {
	if !r.vlog.covers(d.vlog, d.vlog) || !r.mem.covers(d.mem, d.memory) {
		if err := r.follow(); err != nil {
			return err
		}
		if err := spare(r.free, r.dir, r.floor+d.vlog+d.mem); err != nil {
			return err
		}
		if err := r.holdLogs(d); err != nil {
			return err
		}
		if err := r.checkFlush(); err != nil {
			return err
		}
		ahead := r.ahead(d)
		if err := errors.Join(r.vlog.ahead(r.dir, d.vlog, ahead), r.mem.ahead(r.dir, d.mem, ahead)); err != nil {
			return err
		}
	}
	r.vlog.add(d.vlog, d.vlog)
	r.mem.add(d.mem, d.memory)
	return nil
}

// mostWritten returns an upper bound of the bytes written to Badger's log of
// the given name.
func (r *room) mostWritten(name string) int64 {
	for _, g := range []*growing{&r.vlog, &r.mem} {
		if g.used >= 0 && name == filepath.Base(g.path(r.dir)) {
			return g.used
		}
	}
	return math.MaxInt64
}

// checkFlush returns an error that wraps ErrNoSpace while a memtable can't be
// flushed for lack of space: a write that waits for it holds up reads.
func (r *room) checkFlush() error {
	if r.memtables > 1 && r.mapped.stuck.Load() {
		return fmt.Errorf("%w: a memtable in %s could not be flushed", ErrNoSpace, r.dir)
	}
	r.mapped.stuck.Store(false)
	return nil
}

// holdLogs reserves the space for a write in new logs if Badger may begin some
// meanwhile. The error wraps ErrNoSpace if there is none.
func (r *room) holdLogs(d demand) error {
	if r.vlog.load+d.vlog < r.vlog.limit && r.mem.load+d.memory < r.mem.limit {
		d = demand{}
	}
	return r.mapped.holdLogs(d.vlog, d.mem)
}

// holdToFlush reserves the space for a table of each memtable. The error wraps
// ErrNoSpace if there is none.
func (r *room) holdToFlush() error {
	tables, err := memtableRoom(r.dir)
	if err != nil {
		return err
	}
	return r.mapped.hold(tables + reserveBytes)
}

// holdToRewrite reserves the space for the given bytes of a value log that is
// rewritten: in the newest logs, and for new ones. The error wraps ErrNoSpace
// if there is none. The caller calls rewritten afterwards.
func (r *room) holdToRewrite(values int64) error {
	if err := r.follow(); err != nil {
		return err
	}
	keys := values / 8 // a value has 1 KiB or more, its key and pointer less than 100 bytes
	rest := min(values, max(r.vlog.limit-r.vlog.used, 0))
	if err := errors.Join(r.vlog.ahead(r.dir, rest, 0), r.mem.ahead(r.dir, keys, 0)); err != nil {
		return err
	}
	return r.mapped.holdLogs(values-rest, keys)
}

// rewritten measures what was written, and releases what was reserved for more.
func (r *room) rewritten() error {
	err := errors.Join(r.measure(), r.mapped.holdLogs(0, 0))
	for _, g := range []*growing{&r.vlog, &r.mem} {
		if err == nil {
			err = g.release(r.dir)
		}
	}
	return err
}

// release gives back the blocks beyond the step that a write would allocate.
func (g *growing) release(dir string) error {
	keep := wholeFolios(g.used + firstStep)
	if g.used < 0 || keep >= g.held {
		return nil
	}
	err := deallocate(g.path(dir), keep, g.held)
	if err == nil {
		g.held = keep
	}
	return err
}

// covers reports whether the next n bytes are allocated, and Badger does not
// begin another file.
func (g *growing) covers(n, load int64) bool {
	return g.used >= 0 && g.used+n <= g.held && g.load+load < g.limit
}

func (g *growing) add(n, load int64) {
	if g.used >= 0 {
		g.used += n
		g.load += load
	}
}

// ahead returns how much may be allocated beyond a write, in each file, so that
// the next start has the space that it needs.
func (r *room) ahead(d demand) int64 {
	have, err := r.free(r.dir)
	if err != nil {
		return 0
	}
	return max(have-r.floor-d.vlog-d.mem-r.replayBytes.Load()-aheadRoom, 0) / 2
}

// ahead allocates the next n bytes and a step of at most most bytes.
func (g *growing) ahead(dir string, n, most int64) error {
	if g.used < 0 || n == 0 || g.used+n <= g.held {
		return nil
	}
	step := min(max(g.used/2, firstStep), g.step, most)
	end := max(g.used+n, min(wholeFolios(g.used+n+step), 2*g.limit)) // the file is mapped at twice its limit
	err := allocate(g.path(dir), end)
	switch {
	case err == nil:
		g.held = end
	case errors.Is(err, errors.ErrUnsupported):
		g.used, err = -1, nil // rely on the free space
	case isNoSpace(err):
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// wholeFolios returns the end of the folio that a file's first n bytes end in.
func wholeFolios(n int64) int64 { return (n + folioBytes - 1) / folioBytes * folioBytes }

// spare returns an error that wraps ErrNoSpace unless the given bytes, and some
// inodes, are free under dir.
func spare(free func(string) (int64, error), dir string, bytes int64) error {
	have, err := free(dir)
	if err != nil {
		return err
	}
	if have < bytes {
		return fmt.Errorf("%w: %s are free on the file system of %s, %s are needed", ErrNoSpace, mebibytes(have), dir, mebibytes(bytes))
	}
	return spareFiles(dir)
}

// spareFiles returns an error that wraps ErrNoSpace unless some inodes are free
// under dir.
func spareFiles(dir string) error {
	if inodes, known := freeInodes(dir); known && inodes < spareInodes {
		return fmt.Errorf("%w: %d inodes are free on the file system of %s, %d are needed: remove files", ErrNoSpace, inodes, dir, spareInodes)
	}
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// memtableRoom returns the most that the tables take that Badger makes of the
// memtable logs in dir when it opens or closes.
func memtableRoom(dir string) (bytes int64, err error) {
	names, err := writableBadgerLogs(dir)
	for _, name := range names {
		if !strings.HasSuffix(name, ".mem") {
			continue
		}
		path := filepath.Join(dir, name)
		n := writtenBytes(path)
		if n < 0 {
			if info, err := os.Stat(path); err == nil {
				n = info.Size() / 2
			}
		}
		bytes += tableOf(max(n, 0))
	}
	return bytes, err
}

// tableOf returns the most that a table takes that Badger makes of a memtable
// log of the given size.
func tableOf(log int64) int64 { return log * 3 / 2 }
