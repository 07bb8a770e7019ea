package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// Badger rewrites the value log of which it believes most was deleted: it
// copies what is left into the newest one, and then deletes the file. The copy
// needs space, and Badger does not check that there is any.
//
// Badger counts the deleted bytes of each file in DISCARD while it compacts,
// before the compaction itself is on disk. After a crash in between, it counts
// them again. So the count can be too high, and where space is short it is not
// relied upon: the store adds up by itself what is left of the file.

// discardFile holds Badger's counts (Badger 4): for each value log its number
// and its deleted bytes, 8 bytes each, big-endian. Number 0 ends the list.
const discardFile = "DISCARD"

// discardRatio returns which part of a value log must be deleted for it to be
// rewritten, from 0.5 to 1, such that there is space for the rest, and the most
// bytes that this rest has. So a disk that is nearly full gets back the files
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
	name, deleted, err := mostDiscarded(s.room.dir)
	if err != nil {
		return 0, 0, err
	}
	if have >= size { // whatever is left of the file
		if deleted < 0.5 {
			return 0, 0, badger.ErrNoRewrite
		}
		return 0.5, size / 2, nil
	}
	if left, err = s.leftIn(name); err != nil {
		return 0, 0, err
	}
	if left > have {
		return 0, 0, fmt.Errorf("%w: %s are left of %s, and %s are free to copy them to", ErrNoSpace, mebibytes(left), name, mebibytes(have))
	}
	return max(0.5, 1-float64(have)/float64(size)), left, nil
}

// mostDiscarded returns the name of the value log that Badger rewrites next
// and which part of it is deleted, by Badger's own count.
func mostDiscarded(dir string) (name string, deleted float64, err error) {
	b, err := os.ReadFile(filepath.Join(dir, discardFile))
	if err != nil {
		return "", 0, err
	}
	var most uint64
	for ; len(b) >= 16 && binary.BigEndian.Uint64(b) != 0; b = b[16:] {
		n := binary.BigEndian.Uint64(b[8:])
		if n <= most {
			continue
		}
		file := fmt.Sprintf(valueLogName, binary.BigEndian.Uint64(b))
		// Badger still counts for files that it has removed.
		if info, err := os.Stat(filepath.Join(dir, file)); err == nil && info.Size() > 0 {
			name, most, deleted = file, n, float64(n)/float64(info.Size())
		}
	}
	return name, deleted, nil
}

// mayRewrite returns an error if Badger must not rewrite the value log that it
// would rewrite next: it takes the first entry that is not whole for the file's
// end, and would delete the file with what follows.
func (s *Store) mayRewrite(ratio float64) error {
	name, deleted, err := mostDiscarded(s.room.dir)
	if err != nil || deleted < ratio {
		return err // Badger does not rewrite it
	}
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
