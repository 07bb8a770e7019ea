package wal

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"sync"
	_ "unsafe" // for go:linkname

	"golang.org/x/sys/unix"
)

// mmapper is the type behind unix.Mmap, up to the field that is replaced.
type mmapper struct {
	sync.Mutex
	_    map[*byte][]byte
	mmap func(addr, length uintptr, prot, flags, fd int, offset int64) (uintptr, error)
}

// Badger maps its files with unix.Mmap, and offers no way to do anything
// between creating a file and copying into its mapping. See docs/adr/0025.
//
//go:linkname mapper golang.org/x/sys/unix.mapper
var mapper *mmapper

// systemMmap is what unix.Mmap called before; nil if it was not what this
// package knows, and is not replaced.
var systemMmap func(addr, length uintptr, prot, flags, fd int, offset int64) (uintptr, error)

func init() {
	if f := runtime.FuncForPC(reflect.ValueOf(mapper.mmap).Pointer()); f != nil && f.Name() == "golang.org/x/sys/unix.mmap" {
		systemMmap, mapper.mmap = mapper.mmap, mmapAllocated
	}
}

// mappedDirs holds the *mappedFiles of each directory of a Badger.
var mappedDirs sync.Map

// attach makes m responsible for the files that are created in dir. The caller
// calls detach when Badger is closed.
func (m *mappedFiles) attach(dir string) (detach func(), err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	mappedDirs.Store(dir, m)
	return func() { mappedDirs.CompareAndDelete(dir, m) }, nil
}

// mmapAllocated is what unix.Mmap calls.
func mmapAllocated(addr, length uintptr, prot, flags, fd int, offset int64) (at uintptr, err error) {
	m, path := newFile(prot, flags, fd)
	if m == nil {
		return systemMmap(addr, length, prot, flags, fd, offset)
	}
	err = m.created(uintptr(fd), path, int64(length), func() error {
		if m.unmappable != nil && m.unmappable(path) {
			return unix.ENOMEM
		}
		at, err = systemMmap(addr, length, prot, flags, fd, offset)
		return err
	})
	return at, err
}

// newFile returns the path of a file that is about to be mapped for writing,
// and whose it is. It returns nil if it is not a new one of a Badger's.
func newFile(prot, flags, fd int) (m *mappedFiles, path string) {
	if fd < 0 || prot&unix.PROT_WRITE == 0 || flags&unix.MAP_SHARED == 0 {
		return nil, ""
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, "" // without /proc nothing tells whose file it is
	}
	of, ok := mappedDirs.Load(filepath.Dir(path))
	if !ok || !nothingWritten(fd) {
		return nil, ""
	}
	return of.(*mappedFiles), path
}

// nothingWritten reports whether a file of a Badger has no data yet. It may
// have blocks: ext4 keeps an access control list or a security label that does
// not fit in the inode in a block of the file's.
func nothingWritten(fd int) bool {
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil {
		return false // mapping it reports what is wrong with it
	}
	if stat.Blocks == 0 {
		return true
	}
	offset, err := unix.Seek(fd, 0, unix.SEEK_CUR)
	if err != nil {
		return false
	}
	_, err = unix.Seek(fd, 0, unix.SEEK_DATA)
	if err == nil {
		_, _ = unix.Seek(fd, offset, unix.SEEK_SET)
	}
	return errors.Is(err, unix.ENXIO)
}

// allocateBlocks is a mappedFiles' allocate.
func allocateBlocks(fd uintptr, bytes int64) error {
	for {
		err := unix.Fallocate(int(fd), unix.FALLOC_FL_KEEP_SIZE, 0, bytes)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
