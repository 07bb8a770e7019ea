// Package journaltest is an in-memory file system that fails and crashes where
// a test says, for tests of packages built on package journal.
//
// It separates what programs see (the page cache) from what the disk holds.
// Writes and sizes reach the disk with Sync, names with SyncDir. At a power cut
// chance decides about everything else: each write is kept, lost or torn at a
// boundary of 512 bytes, and the first few changes to names are kept.
package journaltest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/cantuslog/cantus/wal/journal"
)

// ErrInjected is returned by operations that a test made fail.
var ErrInjected = errors.New("journaltest: injected failure")

// ErrCrashed is returned by every operation after a crash.
var ErrCrashed = errors.New("journaltest: crashed")

// Kind is a kind of operation that changes the file system.
type Kind string

// The kinds.
const (
	Create   Kind = "create"
	Write    Kind = "write"
	Sync     Kind = "sync"
	Allocate Kind = "allocate"
	Truncate Kind = "truncate"
	Rename   Kind = "rename"
	Remove   Kind = "remove"
	SyncDir  Kind = "syncdir"
)

// Outcome is the effect of an operation that fails.
type Outcome int

// The outcomes.
const (
	Lost Outcome = iota // no effect; a lost sync also drops the unsynced writes
	Kept                // the full effect, and yet an error
	Torn                // a write has part of its effect; others are Lost or Kept, by chance
)

// Fault is one failure.
type Fault struct {
	At      int     // the operation that fails, counted from 1
	Outcome Outcome // its effect
	Crash   bool    // every later operation returns ErrCrashed
	Err     error   // what it returns; default ErrInjected
}

// Call is an operation about to run, as a hook sees it.
type Call struct {
	N    int // counted from 1
	Kind Kind
	Name string // of the file or directory, the old one for Rename
}

const sector = 512

// FS is the file system. It is safe for concurrent use.
type FS struct {
	mu      sync.Mutex
	rng     *rand.Rand
	ops     int
	fault   Fault
	hook    func(Call) error
	crashed bool
	dirs    map[string]bool
	names   map[string]*inode // as programs see them
	durable map[string]*inode // as the disk holds them
	changes []change          // from durable to names, in order
}

var _ journal.FS = (*FS)(nil)

type inode struct {
	data    []byte // as programs see it
	disk    []byte
	pending []write // from disk to data, in order
}

type write struct {
	off  int64
	data []byte
	size int64 // if data is nil: the new size
}

// change adds or removes a name of a file; a rename also removes the name from,
// in the same step.
type change struct {
	name, from string
	file       *inode
}

// New returns an empty file system; seed seeds its random decisions.
func New(seed uint64) *FS {
	return &FS{
		rng: rand.New(rand.NewPCG(seed, 0)), dirs: map[string]bool{},
		names: map[string]*inode{}, durable: map[string]*inode{},
	}
}

// Fail arranges for one failure. The zero Fault cancels it.
func (f *FS) Fail(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// Hook sets a function that is called before every operation that changes
// something. If fn returns an error, the operation has no effect and returns
// that error. fn must not use f.
func (f *FS) Hook(fn func(Call) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = fn
}

// Ops returns the number of operations that changed something, or tried to.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops
}

// Crashed reports whether a fault has crashed f.
func (f *FS) Crashed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashed
}

// PowerCut returns what the disk holds when the power fails now. Operations on
// f return ErrCrashed from then on.
func (f *FS) PowerCut() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashed = true
	g := New(f.rng.Uint64())
	after := map[string]*inode{}
	for name, file := range f.durable {
		after[name] = file
	}
	for _, c := range f.changes[:f.rng.IntN(len(f.changes)+1)] {
		c.apply(after)
	}
	for name, file := range sorted(after) {
		data := f.survive(file)
		g.put(name, data)
	}
	g.takeDirs(f)
	return g
}

// Kill returns what the next process sees when this one is killed now: every
// change, synced or not. Operations on f return ErrCrashed from then on.
func (f *FS) Kill() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashed = true
	g := New(f.rng.Uint64())
	g.dirs, g.names, g.durable = f.dirs, f.names, f.durable
	g.changes = f.changes
	return g
}

// Clone returns a file system whose disk holds what programs see in f now.
func (f *FS) Clone() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := New(1)
	for name, file := range f.names {
		g.put(name, file.data)
	}
	g.takeDirs(f)
	return g
}

func (f *FS) takeDirs(from *FS) {
	for dir := range from.dirs {
		f.dirs[dir] = true
	}
}

// sorted ranges over files by name, so that a seed always gives the same
// result.
func sorted(files map[string]*inode) func(func(string, *inode) bool) {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	return func(yield func(string, *inode) bool) {
		for _, name := range names {
			if !yield(name, files[name]) {
				return
			}
		}
	}
}

func (f *FS) survive(file *inode) []byte {
	data := append([]byte(nil), file.disk...)
	for _, w := range file.pending {
		switch f.rng.IntN(3) {
		case 0:
			data = w.apply(data)
		case 1:
			if w.data != nil {
				data = f.tear(w, data)
			}
		}
	}
	return data
}

// tear applies some of the sectors of a write to data.
func (f *FS) tear(w write, data []byte) []byte {
	for off := w.off; off < w.off+int64(len(w.data)); {
		end := min((off/sector+1)*sector, w.off+int64(len(w.data)))
		if f.rng.IntN(2) == 0 {
			data = write{off: off, data: w.data[off-w.off : end-w.off]}.apply(data)
		}
		off = end
	}
	return data
}

func (w write) apply(data []byte) []byte {
	size := w.size
	if w.data != nil {
		size = max(int64(len(data)), w.off+int64(len(w.data)))
	}
	for int64(len(data)) < size {
		data = append(data, make([]byte, size-int64(len(data)))...)
	}
	data = data[:size]
	copy(data[min(w.off, size):], w.data)
	return data
}

func (c change) apply(names map[string]*inode) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.file == nil {
		delete(names, c.name)
		return
	}
	names[c.name] = c.file
}

// Files returns the names of all files.
func (f *FS) Files() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range sorted(f.names) {
		names = append(names, name)
	}
	return names
}

// ReadFile returns a copy of a file's content, nil if there is none.
func (f *FS) ReadFile(name string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if file := f.names[name]; file != nil {
		return append([]byte{}, file.data...)
	}
	return nil
}

// WriteFile creates or replaces a file durably. It is not counted.
func (f *FS) WriteFile(name string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(name, data)
}

// Delete removes a file durably. It is not counted.
func (f *FS) Delete(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.names, name)
	delete(f.durable, name)
}

func (f *FS) put(name string, data []byte) {
	file := &inode{data: append([]byte(nil), data...), disk: append([]byte(nil), data...)}
	f.names[name], f.durable[name] = file, file
}

// do counts an operation and runs it in full, in part or not at all. part is
// the effect of a torn operation; if it is nil chance chooses between Lost and
// Kept. lost, if not nil, is the effect of a lost operation. f.mu is held.
func (f *FS) do(kind Kind, name string, all, part, lost func()) error {
	if f.crashed {
		return ErrCrashed
	}
	f.ops++
	if f.hook != nil {
		if err := f.hook(Call{f.ops, kind, name}); err != nil {
			return &os.PathError{Op: string(kind), Path: name, Err: err}
		}
	}
	if f.ops != f.fault.At {
		all()
		return nil
	}
	f.crashed = f.fault.Crash
	switch outcome := f.fault.Outcome; {
	case outcome == Torn && part != nil:
		part()
	case outcome == Kept, outcome == Torn && f.rng.IntN(2) == 0:
		all()
	case lost != nil && !f.crashed:
		lost()
	}
	err := f.fault.Err
	if err == nil {
		err = ErrInjected
	}
	return &os.PathError{Op: string(kind), Path: name, Err: err}
}

// OpenFile opens a file. It is counted if it creates the file.
func (f *FS) OpenFile(name string, flag int, _ os.FileMode) (journal.File, error) {
	name = filepath.Clean(name)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.crashed {
		return nil, ErrCrashed
	}
	file := f.names[name]
	if file == nil {
		if flag&os.O_CREATE == 0 {
			return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
		}
		file = &inode{}
		if err := f.do(Create, name, func() { f.change(change{name: name, file: file}) }, nil, nil); err != nil {
			return nil, err
		}
	}
	h := &handle{fs: f, name: name, file: file, readOnly: flag&(os.O_WRONLY|os.O_RDWR) == 0}
	if flag&os.O_TRUNC != 0 && len(file.data) > 0 {
		file.write(write{size: 0})
	}
	return h, nil
}

func (f *FS) change(c change) {
	c.apply(f.names)
	f.changes = append(f.changes, c)
}

// Remove removes a file.
func (f *FS) Remove(name string) error {
	name = filepath.Clean(name)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names[name] == nil && !f.crashed {
		return &os.PathError{Op: "remove", Path: name, Err: os.ErrNotExist}
	}
	return f.do(Remove, name, func() { f.change(change{name: name}) }, nil, nil)
}

// Rename renames a file.
func (f *FS) Rename(oldName, newName string) error {
	oldName, newName = filepath.Clean(oldName), filepath.Clean(newName)
	f.mu.Lock()
	defer f.mu.Unlock()
	file := f.names[oldName]
	if file == nil && !f.crashed {
		return &os.PathError{Op: "rename", Path: oldName, Err: os.ErrNotExist}
	}
	return f.do(Rename, oldName, func() { f.change(change{name: newName, from: oldName, file: file}) }, nil, nil)
}

// SyncDir makes all changes to names durable, in every directory.
func (f *FS) SyncDir(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.do(SyncDir, dir, func() {
		for _, c := range f.changes {
			c.apply(f.durable)
		}
		f.changes = nil
	}, nil, nil)
}

// MkdirAll makes a directory, durable at once.
func (f *FS) MkdirAll(dir string, _ os.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.crashed {
		return ErrCrashed
	}
	f.dirs[filepath.Clean(dir)] = true
	return nil
}

// ReadDir returns the names of the files in a directory.
func (f *FS) ReadDir(dir string) ([]string, error) {
	dir = filepath.Clean(dir)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.crashed {
		return nil, ErrCrashed
	}
	if !f.dirs[dir] {
		return nil, &os.PathError{Op: "readdir", Path: dir, Err: os.ErrNotExist}
	}
	var names []string
	for name := range sorted(f.names) {
		if base, ok := strings.CutPrefix(name, dir+string(filepath.Separator)); ok {
			names = append(names, base)
		}
	}
	return names, nil
}

func (i *inode) write(w write) {
	i.data = w.apply(i.data)
	i.pending = append(i.pending, w)
}

type handle struct {
	fs       *FS
	name     string
	file     *inode
	readOnly bool
	closed   bool
}

func (h *handle) usable(writing bool) error {
	switch {
	case h.fs.crashed:
		return ErrCrashed
	case h.closed:
		return fmt.Errorf("%s: %w", h.name, os.ErrClosed)
	case writing && h.readOnly:
		return &os.PathError{Op: "write", Path: h.name, Err: os.ErrPermission}
	}
	return nil
}

func (h *handle) ReadAt(b []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.usable(false); err != nil {
		return 0, err
	}
	n := copy(b, h.file.data[min(off, int64(len(h.file.data))):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) WriteAt(b []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.usable(true); err != nil {
		return 0, err
	}
	w := write{off: off, data: append([]byte{}, b...)}
	torn := func() {
		// The write is in the page cache: a power cut may still remove it.
		after := h.fs.tear(w, append([]byte(nil), h.file.data...))
		size := int64(len(after))
		w.data = append([]byte{}, after[min(off, size):min(off+int64(len(b)), size)]...)
		h.file.write(w)
	}
	err := h.fs.do(Write, h.name, func() { h.file.write(w) }, torn, nil)
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

func (h *handle) Sync() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.usable(false); err != nil {
		return err
	}
	all := func() {
		for _, w := range h.file.pending {
			h.file.disk = w.apply(h.file.disk)
		}
		h.file.pending = nil
	}
	// As in kernels, pages that could not be written count as clean afterwards.
	lost := func() { h.file.pending = nil }
	return h.fs.do(Sync, h.name, all, nil, lost)
}

func (h *handle) resize(kind Kind, size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.usable(true); err != nil {
		return err
	}
	if kind == Allocate {
		size = max(size, int64(len(h.file.data)))
	}
	return h.fs.do(kind, h.name, func() { h.file.write(write{size: size}) }, nil, nil)
}

func (h *handle) Allocate(size int64) error { return h.resize(Allocate, size) }
func (h *handle) Truncate(size int64) error { return h.resize(Truncate, size) }

func (h *handle) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.usable(false); err != nil {
		return 0, err
	}
	return int64(len(h.file.data)), nil
}

func (h *handle) Close() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.closed {
		return os.ErrClosed
	}
	h.closed = true
	return nil
}
