package nameindex

import (
	"os"
	"sync"
)

// openFiles is how many files the indexes of a budget keep open.
const openFiles = 256

// files keeps the files of runs open that were searched, since to open and
// close one costs more than to read from it. It is safe for concurrent use.
type files struct {
	mu   sync.Mutex
	open map[*run]*openFile
	most int
}

// openFile is a file that searches share.
type openFile struct {
	*os.File
	users int
	last  bool // it is closed when nobody uses it any more
}

// acquire returns a run's file, open. It is to be released.
func (f *files) acquire(s *run) (*openFile, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.open[s]; o != nil {
		o.users++
		return o, nil
	}
	file, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	o := &openFile{File: file, users: 1}
	if len(f.open) >= f.most {
		f.makeRoom()
	}
	if o.last = len(f.open) >= f.most; !o.last {
		f.open[s] = o
	}
	return o, nil
}

// makeRoom closes one of the files that nobody uses.
func (f *files) makeRoom() {
	for s, o := range f.open {
		if o.users == 0 {
			delete(f.open, s)
			_ = o.Close() // it was only read
			return
		}
	}
}

func (f *files) release(o *openFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.users--; o.users == 0 && o.last {
		_ = o.Close() // it was only read
	}
}

// forget closes a run's file, once nobody uses it.
func (f *files) forget(s *run) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.open[s]
	if o == nil {
		return
	}
	delete(f.open, s)
	if o.last = true; o.users == 0 {
		_ = o.Close() // it was only read
	}
}
