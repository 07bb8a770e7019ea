package wal

import (
	"bufio"
	"bytes"
	"crypto/rand"
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

	"github.com/cantuslog/cantus/wal/journal"
)

// Badger opens its newest value log and its memtable logs for writing and
// truncates them at the first invalid entry, as after a crash. A flipped bit
// far from the end would remove all the intact entries after it. So a
// checkpoint records how far each of these files held whole entries when it was
// synced, and they are checked up to there before Badger opens them.
//
// Their format (Badger 4): a header of 20 bytes, then entries of meta (1 byte),
// user meta (1), key length, value length, expiry (unsigned varints), key,
// value, and the CRC-32C of all that, big-endian.

const (
	badgerLogHeader = 20
	// badgerLogEntry bounds the length of an entry.
	badgerLogEntry = 1 << 30
)

// badgerLogEnd says how far a file was intact, and identifies the file: Badger
// numbers its memtable logs from 1 again once all have become tables, but
// begins each file with random bytes.
type badgerLogEnd struct {
	Head []byte `json:"head"`
	End  int64  `json:"end"`
}

// valueLogOf returns the name of the value log that holds an item's value, and
// the place of the item's entry in it. The name is "" if the value is stored
// with its key. Badger logs what it can't read, but does not return the place.
func valueLogOf(item *badger.Item) (name string, offset, size int64) {
	at := reflect.ValueOf(item).Elem().FieldByName("vptr")
	if item.EstimatedSize() == item.KeySize()+int64(at.Len()) || at.Len() < 12 {
		return "", 0, 0
	}
	field := func(i int) uint32 { return binary.NativeEndian.Uint32(at.Bytes()[4*i:]) }
	return fmt.Sprintf(valueLogName, field(0)), int64(field(2)), int64(field(1))
}

// wholeLogEntry reports whether the file at path holds an intact entry of size
// bytes at offset.
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

// keyHolders returns the files that may have lost keys, if Badger misses some.
// Its tables were checked when it was opened. So it is the list of tables, or
// the log of a memtable.
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

// writableBadgerLogs returns the files in dir that Badger may truncate when it
// opens them: every memtable log and the newest value log.
func writableBadgerLogs(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	newest := ""
	for _, e := range entries { // sorted; the numbers have a fixed width
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
// entries. It continues at known, the ends that were found before.
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
			delete(ends, name) // the memtable became a table meanwhile
		} else if err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// checkBadgerLogs checks that the writable files hold whole entries as far as a
// checkpoint has recorded. It returns the missing memtable logs: either they
// were no longer needed, or reading their entries will fail. If damaged is not
// nil it is called for each file that is not whole. Badger then keeps the
// intact records of a value log, and those of a memtable log that precede the
// damage.
func checkBadgerLogs(dir string, ends map[string]badgerLogEnd, damaged func(error)) (missing []string, err error) {
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
		if at >= end {
			continue
		}
		err = fmt.Errorf("%w: %s: the entry at byte %d is not what was written; entries up to byte %d were", ErrDamaged, path, at, end)
		if damaged == nil {
			return nil, err
		}
		damaged(err)
		if strings.HasSuffix(name, ".vlog") {
			if err := supersede(dir, name); err != nil {
				return nil, err
			}
		}
	}
	return missing, nil
}

// supersede makes a value log after the newest one, which Badger then leaves as
// it is.
func supersede(dir, newest string) error {
	var number uint32
	if _, err := fmt.Sscanf(newest, valueLogName, &number); err != nil {
		return fmt.Errorf("value log %s: %w", newest, err)
	}
	head := make([]byte, badgerLogHeader) // without a key, and with a random part
	_, _ = rand.Read(head[8:])            // never fails, says crypto/rand
	if err := writeSynced(filepath.Join(dir, fmt.Sprintf(valueLogName, number+1)), head); err != nil {
		return err
	}
	return journal.OSFS.SyncDir(dir)
}

// endOf returns the recorded end of the file that begins with head, 0 if e is
// about another file.
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
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return head[:n], err
}

// removeEmptyLogs removes empty log files, which Badger would fail to open.
// They are left when the process is killed between creating a file and setting
// its size, or between truncating a file and removing it. A value log that ends
// lists must not be empty; memtable logs reuse their names.
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

// walkBadgerLog reads the entries of a file from an offset on, until one is not
// whole, or until offset to if that is not negative. It returns the offset
// after the last whole entry.
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
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break // Badger truncated it meanwhile: the memtable became a table
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

// badgerEntrySize returns the size of the next entry of r, including its
// checksum. ok is false if there is none.
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
