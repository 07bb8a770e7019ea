package wal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

// Badger opens its newest value log and its memtable logs for writing and cuts
// them at the first entry that does not check, as after a crash. A flipped bit
// far from the end would so take everything behind it, intact as it may be.
// So a checkpoint notes how far each of these files held whole entries when it
// was synced, and up to there they are checked before Badger opens them.
//
// Their format (Badger 4): a header of 20 bytes, then entries of meta (1 byte),
// user meta (1), key length, value length, expiry (unsigned varints), key,
// value, and the CRC-32C of all that, big-endian.

const (
	badgerLogHeader = 20
	// badgerLogEntry bounds an entry: a length over it is not one.
	badgerLogEntry = 1 << 30
)

// badgerLogEnd says how far a file was whole, and which one: Badger numbers its
// memtable logs from 1 again once all have become tables, but begins each file
// with random bytes.
type badgerLogEnd struct {
	Head []byte `json:"head"`
	End  int64  `json:"end"`
}

// valueLogOf returns the name of the value log that holds an item's value, and
// where in it the item's entry is; the name is "" if the value stands beside its
// key. Badger only logs what it can't read, and does not export where it looked.
func valueLogOf(item *badger.Item) (name string, offset, size int64) {
	at := reflect.ValueOf(item).Elem().FieldByName("vptr")
	if item.EstimatedSize() == item.KeySize()+int64(at.Len()) || at.Len() < 12 {
		return "", 0, 0
	}
	field := func(i int) uint32 { return binary.NativeEndian.Uint32(at.Bytes()[4*i:]) }
	return fmt.Sprintf(valueLogName, field(0)), int64(field(2)), int64(field(1))
}

// wholeLogEntry reports whether the file at path holds an entry of size bytes at
// offset that is as Badger wrote it.
func wholeLogEntry(path string, offset, size int64) bool {
	if size <= crcSize || size > badgerLogEntry {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, offset); err != nil {
		return false
	}
	body := b[:size-crcSize]
	return crc32.Checksum(body, castagnoli) == binary.BigEndian.Uint32(b[len(body):])
}

// keyHolders names the files of which one must have lost keys if Badger misses
// some. Its tables were checked when it was opened, so it is the list of them, or
// the log of a memtable that is gone.
func (s *Store) keyHolders() string {
	names := []string{filepath.Join(s.dir, badgerDir, badger.ManifestFilename)}
	for _, path := range s.missing {
		names = append(names, path+" (which is missing)")
	}
	return strings.Join(names, " or ")
}

func isBadgerLog(name string) bool {
	return strings.HasSuffix(name, ".vlog") || strings.HasSuffix(name, ".mem")
}

// writableBadgerLogs names the files in dir that Badger may cut when it opens
// them: every memtable log and the newest value log.
func writableBadgerLogs(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	newest := ""
	for _, e := range entries { // sorted, and their numbers are of one width
		switch {
		case strings.HasSuffix(e.Name(), ".mem"):
			names = append(names, e.Name())
		case strings.HasSuffix(e.Name(), ".vlog"):
			newest = e.Name()
		}
	}
	if newest != "" {
		names = append(names, newest)
	}
	return names, err
}

// badgerLogEnds returns how far the writable log files in dir hold whole
// entries. known are the ends that were found before, from where it looks on.
func badgerLogEnds(dir string, known map[string]badgerLogEnd) (map[string]badgerLogEnd, error) {
	names, err := writableBadgerLogs(dir)
	if err != nil {
		return nil, err
	}
	ends := map[string]badgerLogEnd{}
	for _, name := range names {
		path := filepath.Join(dir, name)
		head, err := readBadgerLogHead(path)
		if err == nil {
			e := badgerLogEnd{Head: head}
			e.End, err = walkBadgerLog(path, max(endOf(known[name], head), badgerLogHeader), -1)
			ends[name] = e
		}
		if errors.Is(err, os.ErrNotExist) {
			delete(ends, name) // a memtable that became a table meanwhile
		} else if err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// checkBadgerLogs makes sure that the writable files hold whole entries as far
// as a checkpoint has noted. It returns the memtable logs that are gone: either
// they were no longer needed, or their entries are missed when they are read.
func checkBadgerLogs(dir string, ends map[string]badgerLogEnd) (missing []string, err error) {
	if err := removeEmptyLogs(dir, ends); err != nil {
		return nil, err
	}
	names, err := writableBadgerLogs(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(ends)) {
		if strings.HasSuffix(name, ".mem") && !slices.Contains(names, name) {
			missing = append(missing, filepath.Join(dir, name))
		}
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		head, err := readBadgerLogHead(path)
		if err != nil {
			return nil, err
		}
		end := endOf(ends[name], head) // 0 for a file that is newer than the checkpoint
		at, err := walkBadgerLog(path, badgerLogHeader, end)
		if err != nil {
			return nil, err
		}
		if at < end {
			return nil, fmt.Errorf("%w: %s: the entry at byte %d is not what was written; entries up to byte %d were",
				ErrDamaged, path, at, end)
		}
	}
	return missing, nil
}

// endOf is where the file that begins with head was found to end, 0 if it is
// not the one that e tells of.
func endOf(e badgerLogEnd, head []byte) int64 {
	if !bytes.Equal(e.Head, head) {
		return 0
	}
	return e.End
}

func readBadgerLogHead(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, badgerLogHeader)
	n, err := io.ReadFull(f, head)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return head[:n], err
}

// removeEmptyLogs removes log files of no length, which Badger would not open:
// it was killed between creating one and giving it its size, or between cutting
// one and removing it. Of value logs those that ends tells of must not be empty;
// the names of memtable logs say nothing.
func removeEmptyLogs(dir string, ends map[string]badgerLogEnd) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, noted := ends[e.Name()]; !isBadgerLog(e.Name()) || noted && strings.HasSuffix(e.Name(), ".vlog") {
			continue
		}
		if info, err := e.Info(); err != nil {
			return err
		} else if info.Size() > 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// walkBadgerLog goes through the entries of a file from an offset on, until one
// is not whole, or offset to is reached if that is not negative. It gives the
// offset behind the last whole one.
func walkBadgerLog(path string, from, to int64) (end int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return 0, err
	}
	r := bufio.NewReaderSize(f, 1<<20)
	var entry []byte
	for end = from; to < 0 || end < to; {
		n, ok := badgerEntrySize(r)
		if !ok || end+int64(n) > size {
			break
		}
		if cap(entry) < n {
			entry = make([]byte, n)
		}
		entry = entry[:n]
		_, err := io.ReadFull(r, entry)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break // Badger has cut it meanwhile: a memtable became a table
		}
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", path, err)
		}
		body := entry[:n-crcSize]
		if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(entry[len(body):]) {
			break
		}
		end += int64(n)
	}
	return end, nil
}

// badgerEntrySize reads the size of the entry that r stands before, checksum
// included. ok is false if there is none.
func badgerEntrySize(r *bufio.Reader) (n int, ok bool) {
	head, _ := r.Peek(2 + 3*binary.MaxVarintLen64)
	if len(head) < 2 {
		return 0, false
	}
	f := reader{b: head[2:]}
	key, value := f.uvarint(), f.uvarint()
	f.uvarint() // expiry
	if f.short || key == 0 || key > 1<<16 || value > badgerLogEntry {
		return 0, false
	}
	return len(head) - len(f.b) + int(key) + int(value) + crcSize, true
}
