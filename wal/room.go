package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

// Badger maps its files and writes by copying into the mapping. Their length is
// set ahead, their blocks are not allocated: a copy into a page that the file
// system has no block for ends the process with SIGBUS, on a goroutine of
// Badger's where nothing can be done about it. So the store asks for the space
// before Badger touches it:
//
//   - The newest value log and the newest memtable log are allocated ahead, a
//     step at a time, by Store.prepare before each write to Badger.
//   - A write after which Badger may begin a new file, write a table or merge
//     some is let through only while floor bytes are free beyond its own size.
//   - Everything else that makes Badger write (opening, closing, collecting
//     value logs) looks at the free space first.
//
// Where there is no room the frames stay in the journal, whose segments are
// allocated, and in memory, and entries are refused with ErrNoSpace until there
// is. What remains is the moment between looking and writing: somebody else who
// takes floor bytes in the second that a table takes to be written meets Badger
// unprepared. Nothing is lost by that, as by any other kill.

// room knows how much of Badger's newest files is allocated. Store.changing
// guards all but dir, free and floor, which don't change.
type room struct {
	dir   string
	free  func(dir string) (int64, error)
	floor int64
	vlog  growing
	mem   growing
	// owed is what the next start writes again: see nextStart.
	owed *atomic.Int64
}

// growing is the newest of Badger's files of one sort.
type growing struct {
	name   string // a format for the number
	number int
	step   int64 // what is allocated ahead at most
	used   int64 // bytes that were written to it, at most; -1 if that is not known
	held   int64 // bytes that are allocated
	// Once load reaches limit Badger begins the next file. For a value log it is
	// what was written to it; for a memtable its memory, at most weight times that.
	load, limit, weight int64
}

// valueLogName is the name of a value log, by its number.
const valueLogName = "%06d.vlog"

const (
	// firstStep is what is allocated ahead in an empty file. It grows with what
	// is in the file.
	firstStep = 256 << 10
	// spareRoom is for all that is small: manifest, checkpoint, directories.
	spareRoom = 4 << 20
	// spareInodes is how many files Badger and the journal may want to make.
	spareInodes = 16
	// aheadRoom is free wherever files are allocated ahead.
	aheadRoom = 32 << 20
	// discardRoom is what Badger's count of deleted bytes takes for the first
	// 4,096 value logs.
	discardRoom = 64 << 10

	// These are what an entry takes beside its key and value, at most: in a log
	// file, and in the memtable's memory; and what stands in the memtable for a
	// value in the value log.
	logRoom     = 40
	nodeRoom    = 140
	pointerRoom = 16
)

// demand is what a write to Badger takes, at most: in the value log, in the
// memtable's log, and in the memtable.
type demand struct{ vlog, mem, memory int64 }

// put adds a key and its value. Values from threshold on go to the value log.
func (d *demand) put(key, value int, threshold int64) {
	if int64(value) >= threshold {
		d.vlog += int64(key+value) + logRoom
		value = pointerRoom
	}
	d.mem += int64(key+value) + logRoom
	d.memory += int64(key+value) + nodeRoom
}

// newRoom is for an open Badger in dir that has just begun new files.
func newRoom(o Options, b badger.Options, owed *atomic.Int64) (*room, error) {
	r := &room{
		owed: owed, dir: b.Dir, free: o.FreeSpace, floor: floorOf(b),
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

// floorOf is how much must be free for Badger to begin new files: a memtable
// becomes a table, which is merged with others.
func floorOf(b badger.Options) int64 { return 2*b.MemTableSize + spareRoom }

// measure finds out how much is in Badger's newest files, after something else
// than a write that was taken account of.
func (r *room) measure() error {
	err := r.follow()
	r.vlog.measure(r.dir)
	r.mem.measure(r.dir)
	return err
}

// follow goes on to Badger's newest files.
func (r *room) follow() error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, g := range []*growing{&r.vlog, &r.mem} {
		last := g.number
		for _, e := range entries {
			stem, ok := strings.CutSuffix(e.Name(), filepath.Ext(g.name))
			if n, err := strconv.Atoi(stem); ok && err == nil {
				g.number = max(g.number, n)
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

// take makes sure of the space for a write, which comes next. The error wraps
// ErrNoSpace if there is none.
func (r *room) take(d demand) error {
	if !r.vlog.covers(d.vlog, d.vlog) || !r.mem.covers(d.mem, d.memory) {
		if err := r.follow(); err != nil {
			return err
		}
		if err := spare(r.free, r.dir, r.floor+d.vlog+d.mem); err != nil {
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

// covers reports whether the next n bytes are allocated, and Badger stays in
// this file.
func (g *growing) covers(n, load int64) bool {
	return g.used >= 0 && g.used+n <= g.held && g.load+load < g.limit
}

func (g *growing) add(n, load int64) {
	if g.used >= 0 {
		g.used += n
		g.load += load
	}
}

// ahead returns how much may be allocated beyond a write, in each file: nothing
// that the next start may need.
func (r *room) ahead(d demand) int64 {
	have, err := r.free(r.dir)
	if err != nil {
		return 0
	}
	return max(have-r.floor-d.vlog-d.mem-r.owed.Load()-aheadRoom, 0) / 2
}

// ahead allocates the next n bytes and a step beyond, of most bytes.
func (g *growing) ahead(dir string, n, most int64) error {
	if g.used < 0 || g.used+n <= g.held {
		return nil
	}
	step := min(max(g.used/2, firstStep), g.step, most)
	end := max(g.used+n, min(g.used+n+step, 2*g.limit)) // the file is mapped at twice its limit
	err := allocate(g.path(dir), end)
	switch {
	case err == nil:
		g.held = end
	case errors.Is(err, errors.ErrUnsupported):
		g.used, err = -1, nil // what is free must do
	case isNoSpace(err):
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// spare makes sure that so many bytes are free under dir, and files can be made.
func spare(free func(string) (int64, error), dir string, bytes int64) error {
	have, err := free(dir)
	if err != nil {
		return err
	}
	if have < bytes {
		return fmt.Errorf("%w: %s are free on the file system of %s, %s are needed", ErrNoSpace, mebibytes(have), dir, mebibytes(bytes))
	}
	if inodes, known := freeInodes(dir); known && inodes < spareInodes {
		return fmt.Errorf("%w: %d inodes are free on the file system of %s, %d are needed: remove files", ErrNoSpace, inodes, dir, spareInodes)
	}
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// memtableRoom is what the tables take, at most, that Badger makes of the
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

// tableOf returns what the table takes, at most, that Badger makes of so many bytes of
// a memtable's log.
func tableOf(log int64) int64 { return log * 3 / 2 }
