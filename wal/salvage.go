package wal

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"github.com/dgraph-io/ristretto/v2/z"

	"github.com/cantuslog/cantus/wal/journal"
)

// TxidRange is a range of transactions, both ends included.
type TxidRange struct{ First, Last uint64 }

// Survivors says which transactions of a group are left in a damaged directory.
type Survivors struct {
	Group        uint32
	Transactions uint64
	// Whole are the ranges that are left, in order, and Missing those between,
	// before and after them that are known to have been there. What was trimmed
	// is neither.
	Whole, Missing []TxidRange
	// LostEnd is true if entries after the last transaction that is left are
	// missing. How many transactions they held is not known.
	LostEnd bool
	// Digest is the digest at the last transaction, if nothing is missing.
	Digest Digest
	// Compared is the txid at which the node had stored its digest, which is
	// the same; 0 if it can't be compared.
	Compared uint64
	// Err is set if the digest is another one: what is left is not what the
	// node had.
	Err error
}

// Complete reports whether nothing is missing.
func (s *Survivors) Complete() bool { return len(s.Missing) == 0 && !s.LostEnd && s.Err == nil }

// Salvage reads every whole transaction that is left in the data directory dir,
// whatever is damaged there. It opens no store and changes nothing: it reads
// the journal, and Badger's value logs, memtable logs and tables by itself. No
// node may have the directory open.
//
// It calls each for the transactions of each group, in order, and then report
// for the group. temp is a directory for a temporary file with what is stored
// in small pieces. problems are what could not be read. The error is one of
// each's, [ErrInUse], fs.ErrNotExist, or one of the temporary file.
func Salvage(dir, temp string, each func(group uint32, t *Transaction) error, report func(Survivors)) (problems []error, err error) {
	if err := mayBeSalvaged(dir); err != nil {
		return nil, err
	}
	sv := salvage{dir: dir, logs: map[uint32]*Log{}, found: map[uint32]map[uint64]piece{}, files: map[string]*os.File{}}
	defer sv.close()
	if sv.spill, err = os.CreateTemp(temp, "salvage-*"); err != nil {
		return nil, err
	}
	_ = os.Remove(sv.spill.Name()) // it is gone when it is closed; where that fails, close removes it
	sv.spilled = bufio.NewWriterSize(sv.spill, 1<<20)
	if err := sv.read(); err != nil {
		return sv.problems, err
	}
	for _, group := range sv.groups() {
		s, err := sv.group(group, each)
		if err != nil {
			return sv.problems, err
		}
		report(s)
	}
	return sv.problems, nil
}

// mayBeSalvaged checks that dir is a data directory, or was one, and that no
// process has it open.
func mayBeSalvaged(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	_, badgerErr := os.Stat(filepath.Join(dir, badgerDir))
	_, journalErr := os.Stat(filepath.Join(dir, journalDir))
	if badgerErr != nil && journalErr != nil {
		return fmt.Errorf("%s is not a data directory: %w", dir, fs.ErrNotExist)
	}
	if _, err := os.Stat(filepath.Join(dir, lockFile)); err != nil {
		return nil //nolint:nilerr // nobody has it locked
	}
	lock, err := lockDir(dir)
	if errors.Is(err, ErrInUse) {
		return err
	}
	if err == nil {
		return unlockDir(lock)
	}
	return nil // it can't be written to
}

// piece is where an intact entry is.
type piece struct {
	path   string // "" for the temporary file
	offset int64
	size   int
	epoch  uint64
}

// salvage is the state of Salvage.
type salvage struct {
	dir        string
	partitions int // 0 if not known
	logs       map[uint32]*Log
	known      bool // logs has the small state
	found      map[uint32]map[uint64]piece
	problems   []error
	spill      *os.File
	spilled    *bufio.Writer
	spillSize  int64
	files      map[string]*os.File
}

func (sv *salvage) close() {
	if sv.spill != nil {
		_ = sv.spill.Close()
		_ = os.Remove(sv.spill.Name())
	}
	for _, f := range sv.files {
		_ = f.Close()
	}
}

func (sv *salvage) problem(err error) {
	if err != nil {
		sv.problems = append(sv.problems, err)
	}
}

// read finds the newest version of each entry that is left.
func (sv *salvage) read() error {
	if id, err := ReadIdentity(sv.dir); err == nil {
		sv.partitions = id.Partitions
	} else {
		sv.problem(fmt.Errorf("which partitions there were is not known: %w", err))
	}
	frames, err := sv.state()
	if err != nil {
		return err
	}
	names, err := os.ReadDir(filepath.Join(sv.dir, badgerDir))
	sv.problem(err)
	for _, n := range names {
		path := filepath.Join(sv.dir, badgerDir, n.Name())
		switch {
		case isBadgerLog(n.Name()):
			sv.problem(sv.badgerLog(path))
		case strings.HasSuffix(n.Name(), ".sst"):
			sv.problem(sv.table(path))
		}
	}
	for _, add := range frames {
		if err := add(); err != nil {
			return err
		}
	}
	return sv.spilled.Flush()
}

// state restores the small state of the logs, from the checkpoint and the
// frames after it. It returns functions that add the entries of the frames.
func (sv *salvage) state() (frames []func() error, err error) {
	s := &Store{dir: sv.dir, logs: sv.logs, opts: Options{}.withDefaults()}
	saved, err := s.readCheckpoint()
	sv.known = err == nil
	if err != nil {
		sv.problem(fmt.Errorf("where the logs begin and end is not known: %w", err))
	}
	next := saved.Seq + 1
	problems, err := journal.Salvage(filepath.Join(sv.dir, journalDir), func(seq uint64, ops []journal.Op) error {
		for _, op := range ops {
			if len(op.Key) < 5 {
				continue
			}
			group := keyGroup(op.Key)
			if op.Key[0] == opEntry && len(op.Key) == 13 {
				index, at := keyIndex(op.Key), sv.spillSize
				if _, err := sv.spilled.Write(op.Value); err != nil {
					return err
				}
				sv.spillSize += int64(len(op.Value))
				value := op.Value
				frames = append(frames, func() error {
					sv.add(group, index, value, piece{offset: at, size: len(value)})
					return nil
				})
			}
			if sv.known && seq == next {
				s.log(group).applyOp(seq, op, math.MaxUint64)
			}
		}
		if seq == next {
			next++
		} else if seq > next && sv.known {
			sv.problem(fmt.Errorf("the journal has frame %d, and lacks frame %d before it", seq, next))
			next = math.MaxUint64 // what follows may depend on it
		}
		return nil
	})
	sv.problems = append(sv.problems, problems...)
	return frames, err
}

// add notes an entry if it is intact and of a later epoch than the one that was
// found before.
func (sv *salvage) add(group uint32, index uint64, value []byte, at piece) {
	epoch, ok := sv.epochOf(group, index, value)
	if !ok {
		return
	}
	of := sv.found[group]
	if of == nil {
		of = map[uint64]piece{}
		sv.found[group] = of
	}
	if before, has := of[index]; has && before.epoch >= epoch {
		return
	}
	at.epoch = epoch
	of[index] = at
}

// guessedEpochs is how many truncations of a log are tried where their number
// is not known.
const guessedEpochs = 1000

// epochOf returns the epoch that an entry was appended in. ok is false if its
// checksum is wrong, or if it is known to have been replaced.
func (sv *salvage) epochOf(group uint32, index uint64, value []byte) (epoch uint64, ok bool) {
	if len(value) < entryHeader+1+crcSize {
		return 0, false
	}
	body, want := value[:len(value)-crcSize], binary.LittleEndian.Uint32(value[len(value)-crcSize:])
	if l := sv.logs[group]; l != nil && sv.known {
		epoch = l.epochs.at(index)
		return epoch, entrySum(group, index, epoch, body) == want
	}
	for epoch = range uint64(guessedEpochs) {
		if entrySum(group, index, epoch, body) == want {
			return epoch, true
		}
	}
	return 0, false
}

// badgerLog reads one of Badger's logs. After a record that is not whole it
// looks for the next one that is.
func (sv *salvage) badgerLog(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	damaged := int64(0)
	for at := int64(badgerLogHeader); at < info.Size(); {
		size, key, value, valueAt := salvageRecord(f, at, info.Size())
		if size > 0 {
			if len(key) == 13 && key[0] == opEntry {
				sv.add(keyGroup(key), keyIndex(key), value, piece{path: path, offset: at + valueAt, size: len(value)})
			}
			at += size
			continue
		}
		next, err := nextRecord(f, at+1, info.Size())
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if next < 0 {
			break // zeros, or nothing that is whole
		}
		damaged += next - at
		at = next
	}
	if damaged > 0 {
		return fmt.Errorf("%w: %s: %d bytes between intact entries are damaged", ErrDamaged, path, damaged)
	}
	return nil
}

// longestHead is the longest head of a record with its key.
const longestHead = 2 + 3*binary.MaxVarintLen32 + 13 + badgerVersionSize

// salvageRecord reads the record at an offset of one of Badger's logs. size is
// 0 if there is no whole one.
func salvageRecord(f *os.File, at, end int64) (size int64, key, value []byte, valueAt int64) {
	head := make([]byte, min(longestHead, end-at))
	if _, err := f.ReadAt(head, at); err != nil || len(head) < 2 {
		return 0, nil, nil, 0
	}
	n, ok := badgerEntrySize(bufio.NewReader(bytesReader(head)))
	if !ok || at+int64(n) > end {
		return 0, nil, nil, 0
	}
	b, err := readBadgerEntry(f, at, int64(n))
	if err != nil {
		return 0, nil, nil, 0
	}
	if key, value, err = splitBadgerEntry(b); err != nil {
		return int64(n), nil, nil, 0
	}
	return int64(n), key, value, int64(n - crcSize - len(value))
}

func bytesReader(b []byte) io.Reader { return strings.NewReader(string(b)) }

// nextRecord returns the offset of the next whole record with an entry, -1 if
// there is none.
func nextRecord(f *os.File, from, end int64) (int64, error) {
	const window, keySize = 1 << 20, 13 + badgerVersionSize
	b := make([]byte, window)
	for at := from; at < end; at += window - longestHead {
		n, err := f.ReadAt(b, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return -1, err
		}
		for i := 0; i+longestHead < n || i+3 < n && at+int64(n) == end; i++ {
			if b[i+2] != keySize {
				continue
			}
			if size, key, _, _ := salvageRecord(f, at+int64(i), end); size > 0 && len(key) == 13 && key[0] == opEntry {
				return at + int64(i), nil
			}
		}
	}
	return -1, nil
}

// table reads the small entries that are in one of Badger's tables.
func (sv *salvage) table(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: table %s: %w", ErrDamaged, path, err)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = errNoTable
		}
	}()
	file, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close(-1)) }()
	t, err := table.OpenTable(file, table.Options{ChkMode: options.NoVerification})
	if err != nil {
		return errNoTable
	}
	defer func() {
		if t.VerifyChecksum() != nil && err == nil {
			err = errors.New("a part of its content is not what was written")
		}
	}()
	it := t.NewIterator(0)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		key, v := y.ParseKey(it.Key()), it.Value()
		const bitDelete, bitValuePointer = 1 << 0, 1 << 1
		if len(key) != 13 || key[0] != opEntry || v.Meta&(bitDelete|bitValuePointer) != 0 {
			continue
		}
		at := sv.spillSize
		if _, err := sv.spilled.Write(v.Value); err != nil {
			return err
		}
		sv.spillSize += int64(len(v.Value))
		sv.add(keyGroup(key), keyIndex(key), v.Value, piece{offset: at, size: len(v.Value)})
	}
	return nil
}

// groups returns the partitions, in order.
func (sv *salvage) groups() (all []uint32) {
	if sv.partitions > 0 {
		for group := range uint32(sv.partitions) {
			all = append(all, group)
		}
		return all
	}
	const most = 1 << 16 // groups above are not partitions
	for group := range maps.Keys(sv.found) {
		if group < most {
			all = append(all, group)
		}
	}
	slices.Sort(all)
	return all
}

// value reads an entry that was found.
func (sv *salvage) value(p piece) ([]byte, error) {
	f := sv.spill
	if p.path != "" {
		if f = sv.files[p.path]; f == nil {
			var err error
			if f, err = os.Open(p.path); err != nil {
				return nil, err
			}
			sv.files[p.path] = f
		}
	}
	b := make([]byte, p.size)
	_, err := f.ReadAt(b, p.offset)
	return b, err
}

// group passes the transactions of a group to each, and says what is left.
func (sv *salvage) group(group uint32, each func(uint32, *Transaction) error) (Survivors, error) {
	g := salvagedGroup{Survivors: Survivors{Group: group}, each: each, intact: true}
	l := sv.logs[group]
	first, last := uint64(0), uint64(math.MaxUint64)
	if l != nil && sv.known {
		first, last, g.voids = l.first, l.last, l.voids
		if base, err := DecodeBase(l.meta[MetaDigestBase]); err == nil {
			g.next, g.Digest = base.Txid, base.Digest
		}
		if mark, err := DecodeBase(l.meta[MetaDigestMark]); err == nil {
			g.mark = mark
		}
	} else if sv.known {
		last = 0 // nothing was ever written
	}
	g.next++
	indexes := slices.DeleteFunc(slices.Sorted(maps.Keys(sv.found[group])), func(i uint64) bool { return i < first || i > last })
	if !sv.known && len(indexes) > 0 {
		first = indexes[0] // the log may have been trimmed up to there
		g.begin = true
	}
	before := first - 1
	for _, index := range indexes {
		b, err := sv.value(sv.found[group][index])
		if err != nil {
			return g.Survivors, err
		}
		e, err := decodeEntry(group, index, sv.found[group][index].epoch, b)
		if err != nil {
			continue
		}
		g.gap = g.gap || first > 0 && index > before+1
		before = index
		if err := g.entry(&e); err != nil {
			return g.Survivors, err
		}
	}
	g.end(first > 0 && last != math.MaxUint64 && before < last)
	return g.Survivors, nil
}

// salvagedGroup is the state of salvage.group.
type salvagedGroup struct {
	Survivors
	each   func(uint32, *Transaction) error
	voids  []uint64
	mark   Base
	next   uint64 // the next txid
	begin  bool   // the first transaction is not known
	gap    bool   // entries before this one are missing
	intact bool   // no transaction was missing so far
	t      Transaction

	restoring restoring
}

// restore follows the steps by which a log is restored: it begins at the base
// of the backup.
func (g *salvagedGroup) restore(e *Entry) {
	b, err := ParseBatch(e.Data)
	if e.Type != 0 || err != nil || b.Kind != Restores {
		return
	}
	if begin := g.restoring.step(b); begin != nil && g.next == 1 && !g.begin {
		g.next, g.Digest = begin.Base.Txid+1, begin.Base.Digest
	}
}

func (g *salvagedGroup) entry(e *Entry) error {
	if slices.Contains(g.voids, e.Index) {
		return nil
	}
	g.restore(e)
	b, ok := e.transactions()
	if !ok || !g.restoring.counts(e) {
		return nil
	}
	full, err := ParseBatch(e.Data)
	if err != nil || checkRecords(full, &g.t) != nil {
		g.gap = true
		return nil //nolint:nilerr // what is not whole is left out
	}
	switch {
	case g.begin:
		g.next, g.begin = b.First, false
		g.intact = b.First == 1
	case b.First > g.next && g.gap:
		g.Missing = append(g.Missing, TxidRange{g.next, b.First - 1})
		g.intact = false
	case b.First != g.next:
		return nil // void
	}
	g.gap, g.next = false, b.First
	g.Digest = g.Digest.Next(e.Data)
	if n := len(g.Whole); n > 0 && g.Whole[n-1].Last+1 == b.First {
		g.Whole[n-1].Last = b.Last()
	} else {
		g.Whole = append(g.Whole, TxidRange{b.First, b.Last()})
	}
	for r := full.Read(); r.Next(&g.t); {
		if err := g.each(g.Group, &g.t); err != nil {
			return err
		}
		g.Transactions++
	}
	g.next = b.Last() + 1
	if g.intact && g.mark.Txid == b.Last() {
		if g.mark.Digest != g.Digest {
			g.Err = fmt.Errorf("%w: the digest at txid %d is %x, the node wrote down %x", ErrDamaged, g.mark.Txid, g.Digest, g.mark.Digest)
		} else {
			g.Compared = g.mark.Txid
		}
	}
	return nil
}

// end says what is missing after the last transaction that is left. lost is
// true if entries are.
func (g *salvagedGroup) end(lost bool) {
	if g.mark.Txid >= g.next {
		g.Missing = append(g.Missing, TxidRange{g.next, g.mark.Txid})
		g.intact = false
	}
	g.LostEnd = lost || g.gap
	if !g.intact {
		g.Digest = Digest{}
	}
	slices.SortFunc(g.Missing, func(a, b TxidRange) int { return cmp.Compare(a.First, b.First) })
}
