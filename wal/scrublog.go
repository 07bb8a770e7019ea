package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sort"

	"github.com/dgraph-io/badger/v4"
)

// log checks every entry of a log, and its digests. If the log is trimmed or
// truncated meanwhile, it begins again, a few times.
func (sc *scrub) log(l *Log) error {
	for range 3 {
		p := logPass{scrub: sc, log: l}
		err := p.run()
		if stop := sc.pay(0); stop != nil {
			return stop
		}
		if p.moved() {
			continue
		}
		if err == nil && len(p.damage.Entries) == 0 {
			return nil
		}
		if !errors.Is(err, ErrDamaged) && p.damage.Err == nil {
			return err
		}
		p.damage.Log = l
		if p.damage.Err == nil {
			p.damage.Err = fmt.Errorf("group %d: %w", l.group, err)
		}
		sc.found(p.damage)
		return nil
	}
	return nil
}

// logPass reads a log once.
type logPass struct {
	*scrub
	log        *Log
	first      uint64
	epoch      uint64
	base       string
	damage     Damage
	verified   verification
	wrong      error // what is wrong with entries that are intact
	unverified bool  // an entry is damaged or wrong: what follows can't be verified
	file       *os.File
	spent      int // bytes read for this piece
}

// moved reports whether the log's beginning or an entry changed since the pass
// began.
func (p *logPass) moved() bool {
	p.log.mu.RLock()
	defer p.log.mu.RUnlock()
	return p.log.first != p.first || p.log.epoch != p.epoch || string(p.log.meta[MetaDigestBase]) != p.base
}

func (p *logPass) close() {
	if p.file != nil {
		_ = p.file.Close()
		p.file = nil
	}
}

func (p *logPass) run() error {
	l := p.log
	l.mu.RLock()
	baseMeta, mark := l.meta[MetaDigestBase], l.meta[MetaDigestMark]
	p.first, p.epoch, p.base = l.first, l.epoch, string(baseMeta)
	last := l.last
	l.mu.RUnlock()
	if p.first == 0 {
		return nil
	}
	base, err := DecodeBase(baseMeta)
	if err != nil {
		return err
	}
	p.verified = verification{
		report:  PartitionReport{Group: l.group, FirstTxid: base.Txid + 1, LastTxid: base.Txid, Digest: base.Digest},
		trimmed: p.first > 1,
	}
	p.verified.restoring.known = !p.verified.trimmed
	if at, err := DecodeBase(mark); err == nil && at.Txid >= base.Txid && at.Txid > 0 {
		p.verified.marks = []Base{at}
	}
	defer p.close()
	for index := p.first; index <= last; {
		next, err := p.piece(index, last)
		if err != nil {
			return err
		}
		if index = next; len(p.damage.Entries) >= MaxDamaged {
			return nil
		}
	}
	if len(p.damage.Entries) == 0 && p.wrong != nil {
		return p.wrong
	}
	if !p.unverified && len(p.verified.marks) > 0 {
		return fmt.Errorf("%w: the log ends at txid %d, the node wrote down %d", ErrDamaged, p.verified.report.LastTxid, p.verified.marks[0].Txid)
	}
	return nil
}

// piece reads some entries from index on, and returns the index after them.
func (p *logPass) piece(index, last uint64) (next uint64, err error) {
	at, err := p.log.look(index)
	if err != nil {
		return 0, err // the log was trimmed or emptied
	}
	p.verified.voids = p.log.Voids()
	stop := min(p.log.stored(), last)
	if index > stop { // only the journal and memory have it
		if at.value == nil {
			return index, p.pay(scrubPiece) // it was stored just now
		}
		e, err := decodeEntry(p.log.group, index, at.epochs.at(index), at.value)
		if err == nil {
			p.entry(&e)
		}
		return index + 1, err
	}
	p.spent = 0
	err = p.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: groupKey(opEntry, p.log.group)})
		defer it.Close()
		for it.Seek(indexKey(opEntry, p.log.group, index)); index <= stop && p.spent < scrubPiece; index++ {
			var value []byte
			readErr := badger.ErrKeyNotFound
			if it.Valid() && keyIndex(it.Item().Key()) == index {
				value, readErr = p.value(it.Item())
				it.Next()
			}
			p.spent += entryHeader + len(value)
			var e Entry
			if readErr == nil {
				e, readErr = decodeEntry(p.log.group, index, at.epochs.at(index), value)
			}
			if readErr != nil {
				if p.damaged(index); len(p.damage.Entries) >= MaxDamaged {
					index++
					break
				}
				continue
			}
			p.entry(&e)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if len(p.damage.Entries) > 0 && p.damage.Err == nil {
		first := p.damage.Entries[0]
		p.damage.Err = p.log.located(first, fmt.Errorf("%w: entry %d of group %d is not what was written", ErrDamaged, first, p.log.group))
	}
	return index, p.pay(p.spent)
}

// damaged notes a damaged entry. What follows it can't be verified, except for
// its checksums.
func (p *logPass) damaged(index uint64) {
	if len(p.damage.Entries) == 0 {
		p.damage.After = p.verified.report.LastTxid
	}
	p.damage.Entries = append(p.damage.Entries, index)
	p.unverified = true
}

// entry verifies an intact entry.
func (p *logPass) entry(e *Entry) {
	if p.unverified {
		return
	}
	if err := p.verified.entry(e); err != nil {
		p.wrong, p.unverified = err, true
	}
}

// value reads an item's value: from the file of a value log if it is in one,
// without Badger, which maps the file and logs what it can't read as an error.
func (p *logPass) value(item *badger.Item) ([]byte, error) {
	name, offset, size := valueLogOf(item)
	if name == "" {
		return item.ValueCopy(nil)
	}
	path := filepath.Join(p.dir, badgerDir, name)
	if p.file == nil || p.file.Name() != path {
		p.close()
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		p.file = f
	}
	b, err := readBadgerEntry(p.file, offset, size)
	if err != nil {
		return nil, err
	}
	key, value, err := splitBadgerEntry(b)
	if err != nil {
		return nil, err
	}
	if string(key) != string(item.Key()) {
		return nil, fmt.Errorf("%w: %s: the entry at byte %d is another one", ErrDamaged, path, offset)
	}
	dropCached(p.file, offset, size)
	return value, nil
}

// stored returns the index of the newest entry that Badger has.
func (l *Log) stored() uint64 {
	applied := l.store.applier.done()
	l.mu.RLock()
	defer l.mu.RUnlock()
	i := sort.Search(len(l.tail.entries), func(i int) bool { return l.tail.entries[i].seq > applied })
	if len(l.tail.entries) == 0 {
		return l.last
	}
	return l.tail.base + uint64(i) - 1
}

// readBadgerEntry reads an entry of a value log, and checks its checksum.
func readBadgerEntry(f *os.File, offset, size int64) ([]byte, error) {
	if size <= crcSize || size > badgerLogEntry {
		return nil, fmt.Errorf("%w: %s: an entry of %d bytes", ErrDamaged, f.Name(), size)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, offset); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, f.Name(), err)
	}
	body := b[:size-crcSize]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(body):]) {
		return nil, fmt.Errorf("%w: %s: the entry at byte %d is not what was written", ErrDamaged, f.Name(), offset)
	}
	return b, nil
}

// badgerVersionSize is the size of the version at the end of Badger's keys.
const badgerVersionSize = 8

// splitBadgerEntry returns the key, without its version, and the value of an
// entry of one of Badger's logs.
func splitBadgerEntry(b []byte) (key, value []byte, err error) {
	r := reader{b: b[min(2, len(b)):]}
	k, v := r.uvarint(), r.uvarint()
	r.uvarint() // expiry
	if r.short || k < badgerVersionSize || k > uint64(len(r.b)) || v != uint64(len(r.b))-k-crcSize {
		return nil, nil, fmt.Errorf("%w: lengths that do not fit", ErrDamaged)
	}
	return r.b[:k-badgerVersionSize], r.b[k : k+v], nil
}
