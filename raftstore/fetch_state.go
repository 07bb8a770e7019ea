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

// metaFetching is the key of the fetchState in the log's small state. It is set
// from the moment when a fetch begins, or the log is reset, until a fetch is
// complete.
const metaFetching = "fetching"

// FencePrefix begins the keys of metas that say that the application keeps this
// replica out of its group. They are of this replica alone: a fetch neither
// copies nor changes them, and [Reset] deletes them.
const FencePrefix = "fenced"

// fetchState is the progress of a fetch. It is stored in this form.
type fetchState struct {
	// AckedIndex and AckedTerm are those of the newest entry that the replica
	// may have acknowledged. Until it has the committed entries up to there, it
	// must not vote.
	AckedIndex uint64 `json:"owed_index"`
	AckedTerm  uint64 `json:"owed_term"`
	// Keep is the newest entry that was known to be committed when the fetch
	// began. Truncated reports that the entries after it have been removed.
	Keep      uint64 `json:"keep"`
	Truncated bool   `json:"cut"`
}

// Fetching reports whether a fetch of the log is incomplete, or the log was
// reset and not fetched since. Such a log can't be opened: it may lack entries
// that the replica has acknowledged, and the replica must not vote without
// them.
func Fetching(log *wal.Log) bool { return log.Meta(metaFetching) != nil }

// Reset removes the log's entries, its snapshot, the FSM's metas and a fence.
// It keeps Raft's term and vote. [Fetching] reports true from then on. The log
// must not be in use. When Reset returns nil, the change is durable; after an
// error or a crash, call it again.
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
	f.Keep, f.Truncated = 0, false // all entries are to be removed
	metas := []wal.Meta{f.meta()}
	for name := range log.Metas("") {
		if isState(name) || isFence(name) {
			metas = append(metas, wal.Meta{Name: name})
		}
	}
	if err := log.SetMeta(metas...); err != nil {
		return err
	}
	return truncateForFetch(log, &f)
}

// loadFetchState returns the stored state of a fetch. If there is none, it
// returns the state with which a fetch begins.
func loadFetchState(log *wal.Log) (fetchState, error) {
	var f fetchState
	if v := log.Meta(metaFetching); v != nil {
		if err := json.Unmarshal(v, &f); err != nil {
			return f, fmt.Errorf("%w: state of the fetch: %w", wal.ErrDamaged, err)
		}
		return f, nil
	}
	f.AckedIndex = log.LastIndex()
	if f.AckedIndex > 0 {
		f.AckedTerm = lastTerm(log)
	}
	snap, err := snapshotStore{log}.load()
	if err == nil && snap.Index >= log.FirstIndex() && snap.Index <= f.AckedIndex {
		f.Keep = snap.Index
	}
	return f, nil // a snapshot that can't be read counts as none
}

// lastTerm returns the term of the last entry. If that can't be read, it
// returns raft's current term, which is not older.
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

// stateMetas returns the keys of the snapshot and of the FSM's metas.
func stateMetas(log *wal.Log) []string {
	names := slices.Collect(maps.Keys(log.Metas("")))
	return slices.DeleteFunc(names, func(name string) bool { return !isState(name) })
}

// isState reports whether a key is that of the snapshot or of one of the FSM's
// metas.
func isState(name string) bool {
	return name != metaFetching && !strings.HasPrefix(name, stablePrefix) && !isFence(name)
}

func isFence(name string) bool { return strings.HasPrefix(name, FencePrefix) }

// beginFetch records that a fetch has begun, removes the entries that are not
// known to be committed, and returns the state of the fetch.
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
	err = truncateForFetch(log, &f)
	return f, err
}

// truncateForFetch removes the entries after f.Keep, if that is not done yet.
func truncateForFetch(log *wal.Log, f *fetchState) error {
	if f.Truncated {
		return nil
	}
	first, last := log.FirstIndex(), log.LastIndex()
	if last > f.Keep {
		if err := log.TruncateSuffix(max(f.Keep+1, first)); err != nil && !errors.Is(err, wal.ErrNotFound) {
			return err
		}
	}
	f.Truncated = true
	return log.SetMeta(f.meta())
}
