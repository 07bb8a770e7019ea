package raftstore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cantuslog/cantus/wal"
)

// metaFetching is the key of the fetchState in the log's small state. It is
// there from the moment when a fetch begins, or the log is reset, until a fetch
// has ended.
const metaFetching = "fetching"

// fetchState says how far a fetch is. Its form is stored.
type fetchState struct {
	// OwedIndex and OwedTerm are those of the newest entry that the replica may
	// have acknowledged. It must not vote without what is committed up to there.
	OwedIndex uint64 `json:"owed_index"`
	OwedTerm  uint64 `json:"owed_term"`
	// Keep is the newest entry that was known to be committed when the fetch
	// began. Cut says that the entries behind it have been removed.
	Keep uint64 `json:"keep"`
	Cut  bool   `json:"cut"`
}

// Fetching reports whether a fetch of the log has begun and not ended, or the
// log was reset. Such a log can't be opened: it may lack what the replica has
// acknowledged, and the replica would vote without it.
func Fetching(log *wal.Log) bool { return log.Meta(metaFetching) != nil }

// Reset removes the log's entries, its snapshot and the FSM's metas. Raft's
// term and vote stay. [Fetching] is true from then on. The log must not be
// open. When it returns nil this is durable; after an error or a crash, call it
// again.
func Reset(log *wal.Log) error {
	if err := reset(log); err != nil {
		return fmt.Errorf("reset log: %w", err)
	}
	return nil
}

func reset(log *wal.Log) error {
	f, err := loadFetchState(log)
	if err != nil {
		return err
	}
	f.Keep, f.Cut = 0, false
	metas := []wal.Meta{f.meta()}
	for _, name := range stateMetas(log) {
		metas = append(metas, wal.Meta{Name: name})
	}
	if err := log.SetMeta(metas...); err != nil {
		return err
	}
	return cutForFetch(log, &f)
}

// loadFetchState returns the stored state of a fetch, or the state in which one
// would begin.
func loadFetchState(log *wal.Log) (fetchState, error) {
	var f fetchState
	if v := log.Meta(metaFetching); v != nil {
		if err := json.Unmarshal(v, &f); err != nil {
			return f, fmt.Errorf("%w: state of the fetch: %w", wal.ErrDamaged, err)
		}
		return f, nil
	}
	f.OwedIndex = log.LastIndex()
	if f.OwedIndex > 0 {
		f.OwedTerm = lastTerm(log)
	}
	snap, err := snapshotStore{log}.load()
	if err == nil && snap.Index >= log.FirstIndex() && snap.Index <= f.OwedIndex {
		f.Keep = snap.Index
	}
	return f, nil // a snapshot that can't be read is as good as none
}

// lastTerm returns the term of the last entry, or if that can't be read a term
// that is not older.
func lastTerm(log *wal.Log) uint64 {
	if e, err := log.Entry(log.LastIndex()); err == nil {
		return e.Term
	}
	return storedTerm(log)
}

// storedTerm returns raft's current term.
func storedTerm(log *wal.Log) uint64 {
	if v := log.Meta(stablePrefix + keyTerm); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (f fetchState) meta() wal.Meta {
	v, err := json.Marshal(f)
	if err != nil {
		panic(err) // numbers
	}
	return wal.Meta{Name: metaFetching, Value: v}
}

// stateMetas returns the keys of the snapshot and the FSM's metas.
func stateMetas(log *wal.Log) []string {
	names := slices.Collect(maps.Keys(log.Metas("")))
	return slices.DeleteFunc(names, func(name string) bool { return !isState(name) })
}

// isState reports whether a key is that of the snapshot or of a meta of the
// FSM, and not raft's or a fetch's.
func isState(name string) bool {
	return name != metaFetching && !strings.HasPrefix(name, stablePrefix)
}

// beginFetch records that a fetch has begun, removes what is not known to be
// committed, and returns the state of the fetch.
func beginFetch(log *wal.Log) (fetchState, error) {
	f, err := loadFetchState(log)
	if err != nil {
		return f, err
	}
	if !Fetching(log) {
		if err := log.SetMeta(f.meta(), wal.Meta{Name: metaSnapshot}); err != nil {
			return f, err
		}
	}
	err = cutForFetch(log, &f)
	return f, err
}

// cutForFetch removes the entries behind the one to keep.
func cutForFetch(log *wal.Log, f *fetchState) error {
	if f.Cut {
		return nil
	}
	first, last := log.FirstIndex(), log.LastIndex()
	if last > f.Keep {
		if err := log.TruncateSuffix(max(f.Keep+1, first)); err != nil && !errors.Is(err, wal.ErrNotFound) {
			return err
		}
	}
	f.Cut = true
	return log.SetMeta(f.meta())
}
