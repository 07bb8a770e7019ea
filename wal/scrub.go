package wal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
