package wal

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// Badger rewrites the value log with the most deleted bytes, by its own count:
// it copies what is left into the newest one, and then deletes the file. The
// copy needs space, and Badger does not check that there is any.
//
// Badger looks at that one file alone. A large one of which a third was deleted
// would keep any number of small ones, which restarts leave behind, of which
// nothing is left. So a file is also rewritten if less than half of it was
// deleted, provided that with some of the files that come next at least half
// was: together they free as much space as is copied.
//
// Badger counts the deleted bytes of each file in DISCARD while it compacts,
// before the compaction itself is on disk. After a crash in between, it counts
// them again. So the count can be too high, and where space is short it is not
// relied upon: the store adds up by itself what is left of the file.

// discardFile holds Badger's counts (Badger 4): for each value log its number
// and its deleted bytes, 8 bytes each, big-endian. Number 0 ends the list.
const discardFile = "DISCARD"

// discardRatio returns which part of a value log must be deleted for it to be
// rewritten, such that there is space for the rest, and the most bytes that
// this rest has. So a disk that is nearly full gets back the files
// of which nothing is left. The error is badger.ErrNoRewrite if too little was
// deleted, and wraps ErrNoSpace if there is no space to rewrite the file
// that is next.
func (s *Store) discardRatio() (ratio float64, left int64, err error) {
	size := s.db.Opts().ValueLogFileSize
	least := size / 64
	if err := spare(s.opts.FreeSpace, s.room.dir, s.room.floor+least); err != nil {
		return 0, 0, err
	}
	have, err := s.opts.FreeSpace(s.room.dir)
	if err != nil {
		return 0, 0, err
	}
	have = max(have-s.room.floor, least)
	files, err := discards(s.room.dir)
	if err != nil {
		return 0, 0, err
	}
	if !worthRewriting(files) {
		return 0, 0, badger.ErrNoRewrite
	}
	next := files[0]
	ratio = min(0.5, 0.999*next.part()) // below what Badger compares it with
	if have >= size {                   // whatever is left of the file
		return ratio, next.size - int64(ratio*float64(next.size)), nil
	}
	if left, err = s.leftIn(next.name); err != nil {
		return 0, 0, err
	}
	if left > have {
		return 0, 0, fmt.Errorf("%w: %s are left of %s, and %s are free to copy them to", ErrNoSpace, mebibytes(left), next.name, mebibytes(have))
	}
	return ratio, left, nil
}

// discard is what Badger has counted of a value log.
type discard struct {
	name          string
	size, deleted int64 // bytes
}

// part returns which part of the file is deleted, at most 1.
func (d discard) part() float64 { return min(1, float64(d.deleted)/float64(d.size)) }

// discards returns the value logs of which bytes were deleted, by Badger's own
// count, in the order in which Badger rewrites them.
func discards(dir string) (files []discard, err error) {
	b, err := os.ReadFile(filepath.Join(dir, discardFile))
	if err != nil {
		return nil, err
	}
	for ; len(b) >= 16 && binary.BigEndian.Uint64(b) != 0; b = b[16:] {
		d := discard{name: fmt.Sprintf(valueLogName, binary.BigEndian.Uint64(b)), deleted: int64(min(binary.BigEndian.Uint64(b[8:]), math.MaxInt64))}
		// Badger still counts for files that it has removed.
		if info, err := os.Stat(filepath.Join(dir, d.name)); err == nil && info.Size() > 0 && d.deleted > 0 {
			d.size = info.Size()
			files = append(files, d)
		}
	}
	slices.SortStableFunc(files, func(a, b discard) int { return cmp.Compare(b.deleted, a.deleted) })
	return files, nil
}

// worthRewriting reports whether the first of files, or the first few of them
// together, are half deleted.
func worthRewriting(files []discard) bool {
	var deleted, size int64
	for _, d := range files {
		deleted, size = deleted+min(d.deleted, d.size), size+d.size
		if deleted*2 >= size {
			return true
		}
	}
	return false
}

// mayRewrite returns an error if Badger must not rewrite the value log that it
// would rewrite next: it takes the first entry that is not whole for the file's
// end, and would delete the file with what follows.
func (s *Store) mayRewrite(ratio float64) error {
	files, err := discards(s.room.dir)
	if err != nil || len(files) == 0 || files[0].part() < ratio {
		return err // Badger does not rewrite it
	}
	name := files[0].name
	path := filepath.Join(s.room.dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return fileDamage(path, err)
	}
	end, err := walkBadgerLog(path, badgerLogHeader, -1)
	if err != nil || end == info.Size() {
		return err
	}
	if zero, err := zeroFrom(path, end); err != nil || zero {
		return err
	}
	if left, err := s.leftIn(name); err != nil || left == 0 {
		return err
	}
	return fmt.Errorf("%w: %s: the entry at byte %d is not what was written: its space is not reclaimed, since others behind it are needed", ErrDamaged, path, end)
}

// leftIn returns how many bytes of a value log Badger still needs. It walks
// through all keys.
func (s *Store) leftIn(name string) (bytes int64, err error) {
	if name == "" {
		return 0, nil
	}
	err = s.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if file, _, size := valueLogOf(it.Item()); file == name {
				bytes += size
			}
		}
		return nil
	})
	return bytes, err
}

// zeroFrom reports whether a file holds only zeros from an offset on.
func zeroFrom(path string, offset int64) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := make([]byte, scrubPiece)
	for {
		n, err := f.ReadAt(b, offset)
		for _, c := range b[:n] {
			if c != 0 {
				return false, nil
			}
		}
		if offset += int64(n); errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}
