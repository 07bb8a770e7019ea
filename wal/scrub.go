package wal

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"

	"github.com/cantuslog/cantus/wal/journal"
)

// Damage is damage in the files of an open store.
type Damage struct {
	// Log is the log that the damage is in, nil if it is in a file that is not
	// part of one log.
	Log *Log
	// Entries are the damaged entries of Log, in ascending order, at most
	// MaxDamaged of them. There are none if each entry is intact and the log
	// is still not what was written: its txids have a gap, or its digests are
	// others than those that the node stored.
	Entries []uint64
	// After is the last transaction before the first damaged entry.
	After uint64
	// Repaired is true if the store has written the file again.
	Repaired bool
	// Err says what is damaged, and names the file. It wraps [ErrDamaged].
	Err error
}

// Group returns the number of the log's group.
func (l *Log) Group() uint32 { return l.group }

// MaxDamaged is how many damaged entries of a log one scrub reports.
const MaxDamaged = 4096

// scrubPiece is about how many bytes are read between two calls of pace.
const scrubPiece = 256 << 10

// Scrub reads from the disk all that the store has there, once, as [Verify]
// does, while the store is in use: the small files, Badger's tables and logs,
// the journal, and every entry of every log. It calls found for each damage,
// and pace with the bytes that it has read, some 256 KiB at a time. pace limits
// the rate; its error ends the scrub. Memory does not stand in for the disk,
// except for entries that only the journal has.
//
// What the store still knows it writes again: the checkpoints and the
// identity, the journal's frames, and memtable logs.
func (s *Store) Scrub(ctx context.Context, pace func(ctx context.Context, n int) error, found func(Damage)) error {
	sc := scrub{Store: s, ctx: ctx, pace: pace, found: found}
	if err := sc.files(); err != nil {
		return err
	}
	logs := s.allLogs()
	slices.SortFunc(logs, func(a, b *Log) int { return cmp.Compare(a.group, b.group) })
	for _, l := range logs {
		if err := sc.log(l); err != nil {
			return err
		}
	}
	return nil
}

// Scrub is [Store.Scrub] for the entries of one log.
func (l *Log) Scrub(ctx context.Context, pace func(ctx context.Context, n int) error, found func(Damage)) error {
	sc := scrub{Store: l.store, ctx: ctx, pace: pace, found: found}
	return sc.log(l)
}

// scrub is the state of Scrub.
type scrub struct {
	*Store
	ctx   context.Context //nolint:containedctx // of one call
	pace  func(ctx context.Context, n int) error
	found func(Damage)
}

func (sc *scrub) pay(n int) error {
	if err := sc.ctx.Err(); err != nil {
		return err
	}
	sc.reading.RLock()
	closed := sc.badgerClosed
	sc.reading.RUnlock()
	if closed {
		return ErrClosed
	}
	return sc.pace(sc.ctx, n)
}

// files checks everything but the logs' entries.
func (sc *scrub) files() error {
	for _, c := range []struct {
		check  func() error
		repair func() error
	}{
		{sc.identityFile, func() error { return writeChecksummed(filepath.Join(sc.dir, identityFile), sc.identity) }},
		{sc.checkpointFile, sc.renewCheckpoint},
		{func() error { return sc.journal.Check(sc.pay) }, sc.renewCheckpoint},
		{sc.memtableLogs, func() error { return errors.Join(sc.flush(), sc.renewCheckpoint()) }},
		{sc.registry, sc.renewRegistry},
		{sc.tables, nil},
	} {
		err := c.check()
		if err == nil {
			continue
		}
		if stop := sc.pay(0); stop != nil {
			return stop
		}
		if err = fromJournal(err); !errors.Is(err, ErrDamaged) {
			return err
		}
		d := Damage{Err: err}
		if c.repair != nil && sc.Failed() == nil {
			if repairErr := errors.Join(c.repair(), c.check()); repairErr != nil {
				d.Err = fmt.Errorf("%w; it can't be written again: %w", err, repairErr)
			} else {
				d.Repaired = true
			}
		}
		sc.found(d)
	}
	return nil
}

// fileDamage returns the damage of a file that can't be read because of err.
func fileDamage(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing", ErrDamaged, path)
	}
	return err
}

func (sc *scrub) identityFile() error {
	path := filepath.Join(sc.dir, identityFile)
	id, err := ReadIdentity(sc.dir)
	if err != nil {
		if errors.Is(err, ErrFormat) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return fileDamage(path, err)
	}
	if id.NodeID != sc.identity.NodeID || id.ID != sc.identity.ID || id.Partitions != sc.identity.Partitions {
		return fmt.Errorf("%w: %s is another node's", ErrDamaged, path)
	}
	return nil
}

func (sc *scrub) checkpointFile() error {
	sc.checking.Lock()
	defer sc.checking.Unlock()
	path := filepath.Join(sc.dir, checkpointName)
	var saved checkpointFile
	if err := readChecksummed(path, &saved); err != nil {
		return fileDamage(path, err)
	}
	if saved.Seq != sc.checked {
		return fmt.Errorf("%w: %s is of frame %d, the last checkpoint was of frame %d", ErrDamaged, path, saved.Seq, sc.checked)
	}
	return nil
}

// renewCheckpoint takes a checkpoint that leaves every segment of the journal
// that there was unused.
func (sc *scrub) renewCheckpoint() error {
	sc.journal.Renew()
	// Deleting what is not there changes nothing, and makes a frame.
	none := journal.Op{Key: append(groupKey(opMeta, 0), "scrub"...), Delete: true}
	if err := sc.commit([]journal.Op{none}); err != nil {
		return err
	}
	return sc.takeCheckpoint()
}

// flush has Badger write its memtables to tables.
func (sc *scrub) flush() error {
	sc.checking.Lock()
	defer sc.checking.Unlock()
	defer sc.compactors.need()()
	if sc.roomToCompact() != nil {
		return ErrNoSpace
	}
	return sc.flushMemtable()
}

// memtableLogs checks the logs that Badger may truncate at its next start, as
// far as the last checkpoint found them intact.
func (sc *scrub) memtableLogs() error {
	sc.checking.Lock()
	names := slices.Sorted(maps.Keys(sc.badgerLogs))
	sc.checking.Unlock()
	for _, name := range names {
		read, err := sc.memtableLog(name)
		if err != nil {
			return err
		}
		if err := sc.pay(int(read)); err != nil { // no checkpoint waits for that
			return err
		}
	}
	return nil
}

// memtableLog checks one of those logs, and returns how many bytes it has read.
func (sc *scrub) memtableLog(name string) (read int64, err error) {
	sc.checking.Lock()
	defer sc.checking.Unlock()
	e, ok := sc.badgerLogs[name]
	if !ok {
		return 0, nil // there was a checkpoint
	}
	path := filepath.Join(sc.dir, badgerDir, name)
	head, err := readBadgerLogHead(path)
	if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(name, ".mem") {
		return 0, nil // it became a table
	}
	if err != nil {
		return 0, fileDamage(path, err)
	}
	if !slices.Equal(head, e.Head) {
		if strings.HasSuffix(name, ".mem") {
			return 0, nil // its number was used again
		}
		return 0, fmt.Errorf("%w: %s does not begin as it did", ErrDamaged, path)
	}
	at, err := walkBadgerLog(path, badgerLogHeader, e.End)
	if err != nil {
		return 0, err
	}
	if now, _ := readBadgerLogHead(path); at < e.End && slices.Equal(now, head) {
		return 0, fmt.Errorf("%w: %s: the entry at byte %d is not what was written; entries up to byte %d were", ErrDamaged, path, at, e.End)
	}
	return e.End, nil
}

// registry checks the registry of encryption keys, which is empty.
func (sc *scrub) registry() error {
	dir := filepath.Join(sc.dir, badgerDir)
	path := filepath.Join(dir, badger.KeyRegistryFileName)
	if _, err := os.Stat(path); err != nil {
		return nil //nolint:nilerr // Badger makes another
	}
	r, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: dir, ReadOnly: true})
	if err == nil {
		return r.Close()
	}
	return blame(fmt.Errorf("read %s: %w", path, err))
}

// renewRegistry makes the registry anew, as the next start would.
func (sc *scrub) renewRegistry() error {
	m, err := sc.manifest()
	if err != nil {
		return err
	}
	o := sc.db.Opts()
	if err := checkRegistry(o, m); err != nil {
		return err
	}
	r, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: o.Dir})
	if err != nil {
		return err
	}
	return r.Close()
}

// tables checks Badger's manifest and the tables that it lists.
func (sc *scrub) tables() error {
	m, err := sc.manifest()
	if err == nil {
		err = sc.listed(m, filepath.Join(sc.dir, badgerDir, badger.ManifestFilename))
	}
	if err != nil {
		return err
	}
	o := sc.db.Opts()
	for id := range m.Tables {
		path := table.NewFilename(id, o.Dir)
		size := int64(0)
		if info, err := os.Stat(path); err == nil {
			size = info.Size()
		}
		if err := checkTable(path, o); err != nil {
			now, manifestErr := sc.manifest()
			if manifestErr != nil {
				return manifestErr
			}
			if _, still := now.Tables[id]; still {
				return blame(err)
			}
			continue // it was merged into another
		}
		if err := sc.pay(int(size)); err != nil {
			return err
		}
	}
	return nil
}

// manifest reads Badger's manifest. Badger may be writing to it, so that an
// error counts only if it comes again.
func (sc *scrub) manifest() (m badger.Manifest, err error) {
	path := filepath.Join(sc.dir, badgerDir, badger.ManifestFilename)
	o := sc.db.Opts()
	for range 3 {
		f, openErr := os.Open(path)
		if openErr != nil {
			return m, fileDamage(path, openErr)
		}
		m, _, err = badger.ReplayManifestFile(f, o.ExternalMagicVersion, o)
		if err = errors.Join(err, f.Close()); err == nil {
			return m, nil
		}
		if stop := sc.pay(scrubPiece); stop != nil {
			return m, stop
		}
	}
	return m, blame(fmt.Errorf("read %s: %w", path, err))
}

// listed checks that the manifest lists the tables that Badger has. One that is
// being merged is not listed any more, so that a table counts only if the scrub
// before has missed it too.
func (sc *scrub) listed(m badger.Manifest, path string) error {
	missed := map[uint64]bool{}
	for _, t := range sc.db.Tables() {
		if _, ok := m.Tables[t.ID]; !ok {
			missed[t.ID] = true
		}
	}
	before := sc.unlisted.Swap(&missed)
	for id := range missed {
		if before != nil && (*before)[id] {
			return fmt.Errorf("%w: %s lacks table %d", ErrDamaged, path, id)
		}
	}
	return nil
}

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
