package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"os"
	"path/filepath"
	"reflect"

	"github.com/dgraph-io/badger/v4"
)

// Restore writes an entry to the disk again that was found damaged there. The
// entry must be the one that was appended: one that was committed, and read
// from another replica. A key that is intact leads to the place of the entry,
// which is overwritten; otherwise the entry gets a new one.
func (l *Log) Restore(e Entry) error {
	at, err := l.look(e.Index)
	if err != nil {
		return fmt.Errorf("restore entry %d of group %d: %w", e.Index, l.group, err)
	}
	value := e.encode(l.group, at.epochs.at(e.Index))
	if l.restoreInPlace(e.Index, value) == nil && l.onDisk(e.Index, at) == nil {
		return nil
	}
	if err := l.restoreAnew(e.Index, value, at); err != nil {
		return err
	}
	return l.checkRestored(e.Index, at)
}

// Intact reports whether the entry at index can be read from the disk. Memory
// does not stand in for the disk, except for entries that only the journal has.
func (l *Log) Intact(index uint64) bool {
	at, err := l.look(index)
	if err != nil {
		return true // it is needed no more
	}
	return index > l.stored() || l.onDisk(index, at) == nil || l.truncatedSince(at)
}

// onDisk reads an entry from the disk, and returns an error unless it is
// intact.
func (l *Log) onDisk(index uint64, at moment) error {
	p := logPass{scrub: &scrub{Store: l.store}, log: l}
	defer p.close()
	return l.store.view(func(txn *badger.Txn) error {
		item, err := txn.Get(indexKey(opEntry, l.group, index))
		if err != nil {
			return err
		}
		value, err := p.value(item)
		if err == nil {
			_, err = decodeEntry(l.group, index, at.epochs.at(index), value)
		}
		return err
	})
}

// checkRestored fails the store if an entry that was stored anew is not on the
// disk: then Badger writes to a file that was deleted.
func (l *Log) checkRestored(index uint64, at moment) error {
	err := l.onDisk(index, at)
	if err != nil && !errors.Is(err, ErrClosed) && !l.truncatedSince(at) {
		err = fmt.Errorf("entry %d of group %d was written, and is not on the disk: %w", index, l.group, err)
		l.store.fail(err)
	}
	return err
}

// RestoreFromMemory restores an entry from the newest entries in memory. It
// reports whether it was there.
func (l *Log) RestoreFromMemory(index uint64) (restored bool, err error) {
	at, err := l.look(index)
	if err != nil || at.value == nil {
		return false, err
	}
	e, err := decodeEntry(l.group, index, at.epochs.at(index), at.value)
	if err != nil {
		return false, err
	}
	return true, l.Restore(e)
}

// restoreInPlace overwrites the entry's record in the value log.
func (l *Log) restoreInPlace(index uint64, value []byte) error {
	return l.store.view(func(txn *badger.Txn) error {
		item, err := txn.Get(indexKey(opEntry, l.group, index))
		if err != nil {
			return err
		}
		name, offset, size := valueLogOf(item)
		if name == "" {
			return badger.ErrKeyNotFound
		}
		b := badgerRecord(item, value)
		if int64(len(b)) != size {
			return fmt.Errorf("%w: the record has %d bytes, the key says %d", ErrDamaged, len(b), size)
		}
		f, err := os.OpenFile(filepath.Join(l.store.dir, badgerDir, name), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err = isDamagedRecord(f, offset, b[:len(b)-len(value)-crcSize], size); err == nil {
			_, err = f.WriteAt(b, offset)
		}
		return errors.Join(err, f.Sync(), f.Close())
	})
}

// isDamagedRecord returns an error unless the bytes at an offset of a value log
// are a damaged version of a record that begins with head. A value log that was
// deleted may have been followed by one of its name, which holds other records.
func isDamagedRecord(f *os.File, offset int64, head []byte, size int64) error {
	const most = 16 // bits
	info, err := f.Stat()
	if err != nil || info.Size() < offset+size {
		return errors.Join(errOtherRecord, err)
	}
	if whole, _, _, _ := salvageRecord(f, offset, info.Size()); whole > 0 {
		return errOtherRecord
	}
	there := make([]byte, len(head))
	if _, err := f.ReadAt(there, offset); err != nil {
		return err
	}
	differ := 0
	for i := range head {
		differ += bits.OnesCount8(there[i] ^ head[i])
	}
	if differ > most {
		return errOtherRecord
	}
	return nil
}

var errOtherRecord = errors.New("another record is there")

// badgerRecord returns the record of an item in a value log.
func badgerRecord(item *badger.Item, value []byte) []byte {
	key := binary.BigEndian.AppendUint64(item.KeyCopy(nil), ^item.Version())
	meta := byte(reflect.ValueOf(item).Elem().FieldByName("meta").Uint())
	// Badger sets these bits where the key is, and not in the record.
	const bitValuePointer, bitTxn, bitFinTxn = 1 << 1, 1 << 6, 1 << 7
	b := []byte{meta &^ (bitValuePointer | bitTxn | bitFinTxn), item.UserMeta()}
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = binary.AppendUvarint(b, uint64(len(value)))
	b = binary.AppendUvarint(b, item.ExpiresAt())
	b = append(append(b, key...), value...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// restoreAnew stores the entry under its key again.
func (l *Log) restoreAnew(index uint64, value []byte, at moment) error {
	s := l.store
	s.writing.RLock()
	defer s.writing.RUnlock()
	if s.closed {
		return ErrClosed
	}
	s.badgerWrite.Lock()
	defer s.badgerWrite.Unlock()
	if l.truncatedSince(at) || index < l.FirstIndex() {
		return ErrNotFound
	}
	key := indexKey(opEntry, l.group, index)
	var d demand
	d.put(len(key), len(value), 1)
	if err := s.prepare(d); err != nil {
		return err
	}
	wb := s.db.NewWriteBatch()
	defer wb.Cancel()
	if err := wb.Set(key, value); err != nil {
		return err
	}
	return wb.Flush()
}
