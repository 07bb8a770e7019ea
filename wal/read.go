package wal

import (
	"errors"
	"fmt"
	"iter"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// A scan reads from Badger in pieces. The first one is small, since many
// readers want only a few entries.
const (
	firstPiece   = 8 << 10
	largestPiece = 1 << 20
	pieceEntries = 1024
)

// Entry reads the entry at index. The error wraps [ErrNotFound] if index is not
// between the log's ends, and [ErrDamaged] if the entry should be there and
// can't be read.
func (l *Log) Entry(index uint64) (Entry, error) { return l.entryIn(index, new([]byte)) }

// entryIn is [Log.Entry]. What is read from the disk it reads into buf, which
// it replaces by a larger one if need be: the entry is then valid until buf is
// used again.
func (l *Log) entryIn(index uint64, buf *[]byte) (Entry, error) {
	for {
		at, err := l.look(index)
		if err != nil {
			return Entry{}, err
		}
		value := at.value
		if value == nil {
			value, err = l.load(index, *buf)
			*buf = value
		}
		if err == nil {
			l.read.Add(1)
			var e Entry
			if e, err = decodeEntry(l.group, index, at.epochs.at(index), value); err == nil {
				return e, nil
			}
		}
		if !l.truncatedSince(at) {
			return Entry{}, l.unreadable(index, err)
		}
	}
}

// Entries iterates over the entries from index from to index to, both included.
// It stops after the first error, which is one of those of [Log.Entry]. No lock
// is held while the loop's body runs.
func (l *Log) Entries(from, to uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		room := firstPiece
		for index := from; index <= to; {
			at, err := l.look(index)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			var piece []Entry
			if at.value != nil {
				piece, err = l.appendEntry(nil, index, at)
			} else {
				piece, err = l.loadPiece(index, to, at, room)
				room = min(2*room, largestPiece)
			}
			if err != nil && l.truncatedSince(at) {
				continue
			}
			for _, e := range piece {
				if !yield(e, nil) {
					return
				}
				index++
			}
			if err != nil {
				yield(Entry{}, l.unreadable(index, err))
				return
			}
		}
	}
}

// moment is the state of a log at one moment, with respect to an index.
type moment struct {
	value  []byte // the encoded entry, if memory has it
	stop   uint64 // if value is nil, Badger has the entries up to here
	epoch  uint64
	epochs epochs
}

func (l *Log) look(index uint64) (moment, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if index == 0 || index < l.first || index > l.last {
		return moment{}, ErrNotFound
	}
	at := moment{value: l.tail.get(index), stop: l.last, epoch: l.epoch, epochs: l.epochs}
	if l.tail.base > index {
		at.stop = min(at.stop, l.tail.base-1)
	}
	return at, nil
}

// truncatedSince reports whether a suffix was truncated since at: Badger may
// then hold another entry, or none, with the new one in memory.
func (l *Log) truncatedSince(at moment) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.epoch != at.epoch
}

// load reads one encoded entry from Badger, into buf if that is large enough.
func (l *Log) load(index uint64, buf []byte) (value []byte, err error) {
	err = l.store.view(func(txn *badger.Txn) error {
		item, err := txn.Get(indexKey(opEntry, l.group, index))
		if err == nil {
			value, err = item.ValueCopy(buf)
		}
		return err
	})
	return value, err
}

// loadPiece reads entries from Badger, from index to index to, until it has
// about room bytes. With an error it returns the entries before it.
func (l *Log) loadPiece(index, to uint64, at moment, room int) (piece []Entry, err error) {
	to = min(to, at.stop)
	err = l.store.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: groupKey(opEntry, l.group)})
		defer it.Close()
		it.Seek(indexKey(opEntry, l.group, index))
		for n := 0; index <= to && n < room && len(piece) < pieceEntries; it.Next() {
			if !it.Valid() || keyIndex(it.Item().Key()) != index {
				return badger.ErrKeyNotFound
			}
			if at.value, err = it.Item().ValueCopy(nil); err != nil {
				return err
			}
			if piece, err = l.appendEntry(piece, index, at); err != nil {
				return err
			}
			n += len(at.value)
			index++
		}
		return nil
	})
	return piece, err
}

func (l *Log) appendEntry(to []Entry, index uint64, at moment) ([]Entry, error) {
	l.read.Add(1)
	e, err := decodeEntry(l.group, index, at.epochs.at(index), at.value)
	if err != nil {
		return to, err
	}
	return append(to, e), nil
}

// unreadable returns the error for an entry that should be there and can't be
// read. If the log was trimmed or truncated meanwhile, that is ErrNotFound.
func (l *Log) unreadable(index uint64, cause error) error {
	first, last := l.ends()
	switch {
	case index < first || index > last:
		return ErrNotFound
	case errors.Is(cause, ErrClosed):
		return cause
	case !errors.Is(cause, ErrDamaged):
		//nolint:errorlint // Badger's errors are not part of the interface
		cause = fmt.Errorf("%w: entry %d of group %d can't be read: %v", ErrDamaged, index, l.group, cause)
	}
	cause = l.located(index, cause)
	l.store.opts.Damaged(Damage{Log: l, Entries: []uint64{index}, Err: cause})
	return cause
}

// located adds the files to the error of an entry that can't be read.
func (l *Log) located(index uint64, cause error) error {
	return fmt.Errorf("%s: %w", l.whereIs(index), cause)
}

// whereIs returns the files of which one is damaged when the entry at index
// can't be read: the value log that holds it, or, if that is intact there, the
// files that hold its key.
func (l *Log) whereIs(index uint64) (path string) {
	dir := filepath.Join(l.store.dir, badgerDir)
	err := l.store.view(func(txn *badger.Txn) error {
		item, err := txn.Get(indexKey(opEntry, l.group, index))
		if errors.Is(err, badger.ErrKeyNotFound) {
			path = l.store.keyHolders()
			return nil
		}
		if err != nil {
			return err
		}
		path = l.store.keyHolders()
		if name, offset, size := valueLogOf(item); name != "" {
			if name = filepath.Join(dir, name); !wholeLogEntry(name, offset, size) {
				path = name + " or " + path
			}
		}
		return nil
	})
	if err != nil {
		return dir
	}
	return path
}

// EntriesRead returns how many entries were read since the store was opened,
// from memory and from disk.
func (l *Log) EntriesRead() uint64 { return l.read.Load() }

// InMemory reports whether the entry at index would be read from memory.
func (l *Log) InMemory(index uint64) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.tail.get(index) != nil
}
