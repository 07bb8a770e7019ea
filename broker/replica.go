package broker

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// replica is the state of one partition on this node: a function of the
// partition's log. It is a raftstore.FSM.
type replica struct {
	log      *wal.Log
	damage   func(error)   // told what makes the state untrustworthy
	capacity int           // of the lock table
	window   time.Duration // message ids are remembered for
	every    uint64        // so many transactions there is a point, at least
	mark     atomic.Uint64 // the high-water mark

	// mu guards what follows. Only Apply and Restore, and the sequencer by
	// certifying, change it.
	mu     sync.Mutex
	table  *lockmgr.Manager
	digest wal.Digest
	index  uint64 // of the last entry applied
	time   int64  // the partition's: the newest of transactions and trims
	// lastTime is that of the last transaction.
	lastTime int64
	first    uint64 // txid of the oldest transaction kept
	cursors  map[string]cursor
	dirty    map[string]bool // cursors that no stored mark may hold yet
	changed  chan struct{}   // closed when the high-water mark rises, then replaced
	points   []point         // where the log can be cut, rising
	thinned  bool            // stored marks may hold points that are not in points
	newest   place           // of the newest point, or where the log began
	bytes    uint64          // of all entries, the trimmed ones too
	behind   uint64          // of them, of those behind the last transaction
	base     wal.Base        // the chain before the oldest transaction kept
	cut      uint64          // index through which the log is to be trimmed
	// proposed is, on a leader, how many transactions the batches have that are
	// on their way and in the table's flight, by where their bytes begin.
	proposed map[*byte]int
	rolled   int // times that the flight was rolled back

	trimmed chan struct{} // capacity 1: cut has moved
	chain   *digests      // told the digest after each batch, and every entry

	tx   wal.Transaction     // scratch of Apply
	cert lockmgr.Transaction // scratch of Apply
}

// place is a place in the log, by time and by bytes before it.
type place struct {
	time  int64
	bytes uint64
}

// cursor is a consumer's durable position.
type cursor struct {
	Txid uint64
	Time int64 // Unix nanoseconds
}

// applied is what became of an entry when it was applied.
type applied struct {
	void    bool
	failed  bool           // the replica could not apply it, and its node stops
	cursors []cursorResult // of a batch of cursor writes, one for each

	// On the leader, when raft took the entry up, and when it was synced; and
	// when it began and ended to be applied.
	taken, synced, begun, done time.Time
}

type cursorResult struct {
	cursor
	done bool // false: it stood elsewhere than expected
}

func newReplica(log *wal.Log, o Options, damage func(error), chain *digests) *replica {
	return &replica{
		log: log, damage: damage, chain: chain, trimmed: make(chan struct{}, 1), window: o.MsgIDWindow, capacity: o.MaxLocks, every: cmp.Or(o.pointEvery, pointEvery), first: 1,
		table:   lockmgr.New(lockmgr.Options{Locks: o.MaxLocks, IDs: o.MaxMsgIDs, IDWindow: o.MsgIDWindow}),
		cursors: map[string]cursor{}, dirty: map[string]bool{}, changed: make(chan struct{}), proposed: map[*byte]int{},
	}
}

// Apply applies committed entries.
func (r *replica) Apply(entries []raftstore.Committed) []any {
	results := make([]any, len(entries))
	begun := time.Now()
	for i, e := range entries {
		a, err := r.apply(e)
		if err != nil {
			r.damage(fmt.Errorf("apply entry %d: %w", e.Index, err))
			a = applied{failed: true}
		}
		r.chain.passed(e.Index)
		a.taken, a.synced, a.begun, a.done = e.Taken, e.Synced, begun, time.Now()
		results[i] = a
	}
	r.mu.Lock()
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	return results
}

func (r *replica) apply(e raftstore.Committed) (applied, error) {
	b, err := wal.ParseBatch(e.Data)
	if err != nil {
		return applied{}, fmt.Errorf("%w: %w", wal.ErrDamaged, err)
	}
	switch b.Kind {
	case wal.Transactions:
		return r.applyTransactions(e, b)
	case wal.CursorWrites:
		return r.applyCursors(e, b)
	case wal.Trims:
		return r.applyTrims(e, b)
	}
	return applied{}, fmt.Errorf("%w: batches of kind %d are not known to this version", wal.ErrFormat, b.Kind)
}

// applyTransactions records a batch's transactions. A batch is void, on every
// replica alike, if it does not begin where the last one ended, if its time lies
// before the last one's, or if it was certified in another term than its entry's.
func (r *replica) applyTransactions(e raftstore.Committed, b wal.Batch) (applied, error) {
	r.mu.Lock()
	due := r.table.Committed() + 1
	r.mu.Unlock()
	if b.First != due || b.OutOfTerm(e.Term) || !r.inTime(b) {
		return applied{void: true}, r.log.Void(e.Index)
	}
	digest := r.digest.Next(e.Data) // only Apply changes it
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.record(e.Data, b)
	r.digest, r.index = digest, e.Index
	r.mark.Store(r.table.Committed())
	r.addPoint(e, b)
	r.chain.add(chainPoint{wal.Base{Txid: b.Last(), Digest: digest}, e.Index})
	return applied{}, err
}

// inTime reports whether a batch's times go on from the last transaction's. Those of a
// leader that knew that transaction do. They do not in a replica that has another
// history than its leader, which the digests then show.
func (r *replica) inTime(b wal.Batch) bool {
	return b.Time >= r.lastTime && b.Time <= math.MaxInt64-int64(b.Count) // only Apply changes lastTime
}

// record takes a batch's transactions into the tables. One that this leader has
// certified is there already. Any other means that nothing in flight will commit
// as it was certified. mu is held.
func (r *replica) record(data []byte, b wal.Batch) error {
	if n, ours := r.proposed[unsafe.SliceData(data)]; ours && n == b.Count {
		for range n {
			r.table.Commit()
		}
		r.passed(b.Time + int64(b.Count) - 1)
		return nil
	}
	r.rollBack()
	records := b.Read()
	for records.Next(&r.tx) {
		certified(&r.tx, &r.cert)
		r.table.Record(r.tx.Txid, r.tx.Time, &r.cert)
		r.passed(r.tx.Time)
	}
	return records.Err()
}

// passed notes the time of the last transaction. A trim that went before it in the
// log may have a later one. mu is held.
func (r *replica) passed(at int64) { r.lastTime, r.time = at, max(r.time, at) }

// rollBack takes back all that is in flight. What is proposed of it may commit
// all the same, and is then read again. mu is held.
func (r *replica) rollBack() {
	if r.table.Stats().InFlight == 0 && len(r.proposed) == 0 {
		return
	}
	r.table.Rollback(r.table.Committed() + 1)
	clear(r.proposed)
	r.rolled++
}

// propose notes that the bytes of a batch hold so many transactions that are in
// flight, before it is proposed. rolled is as it was when they were certified.
func (r *replica) propose(data []byte, n, rolled int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rolled == rolled {
		r.proposed[unsafe.SliceData(data)] = n
	}
}

// settled forgets where the bytes of a batch are: they are let go, though the
// batch, if its outcome is unknown, may be applied yet.
func (r *replica) settled(data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.proposed, unsafe.SliceData(data))
}

func (r *replica) applyCursors(e raftstore.Committed, b wal.Batch) (applied, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var a applied
	records := b.Read()
	place := int64(0) // in the batch: no two sets have one time
	for c := (wal.Cursor{}); records.NextCursor(&c); place++ {
		name := string(c.Name)
		now := r.cursors[name]
		done := !c.HasExpected || c.Expected == now.Txid
		if done {
			if now = (cursor{Txid: c.Txid, Time: max(b.Time+place, now.Time+1)}); c.Txid > 0 {
				r.cursors[name] = now
			} else { // it is as if it never was
				now = cursor{}
				delete(r.cursors, name)
			}
			r.dirty[name] = true
		}
		a.cursors = append(a.cursors, cursorResult{now, done})
	}
	r.addOther(e)
	return a, records.Err()
}

// certified gives the part of a stored transaction that the table records.
// Names alias t.
func certified(t *wal.Transaction, c *lockmgr.Transaction) {
	c.Locks = c.Locks[:0]
	for _, l := range t.Locks {
		c.Locks = append(c.Locks, lockmgr.Lock{Mode: lockModes[l.Mode], Name: text(l.Name)})
	}
	c.ID, c.Fingerprint = lockmgr.ID{}, 0
	if len(t.MsgID) > 0 {
		c.ID, c.Fingerprint = lockmgr.HashID(text(t.MsgID)), lockmgr.Fingerprint(t.Payload)
	}
}

var lockModes = [...]lockmgr.Mode{wal.ReadLock: lockmgr.Read, wal.WriteLock: lockmgr.Write, wal.AppendLock: lockmgr.Append}

// markState is what a snapshot holds of a replica.
type markState struct {
	Index  uint64 `json:"index"`
	Txid   uint64 `json:"txid"`
	Time   int64  `json:"time"`
	First  uint64 `json:"first"`
	Digest []byte `json:"digest"`
	Bytes  uint64 `json:"bytes"`
	Cut    uint64 `json:"cut,omitempty"`
	// The rest is missing in snapshots of the first nodes.
	LastTime    int64  `json:"last_time,omitempty"`
	Behind      uint64 `json:"behind,omitempty"`
	NewestTime  int64  `json:"newest_time,omitempty"`
	NewestBytes uint64 `json:"newest_bytes,omitempty"`
}

const (
	metaCursor = "cursor/"
	metaMark   = wal.MetaDigestMark
	metaBase   = wal.MetaDigestBase
)

// Snapshot describes the state.
func (r *replica) Snapshot() raftstore.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := markState{
		Index: r.index, Txid: r.table.Committed(), Time: r.time, First: r.first, Digest: r.digest[:], Bytes: r.bytes, Cut: r.cut,
		LastTime: r.lastTime, Behind: r.behind, NewestTime: r.newest.time, NewestBytes: r.newest.bytes,
	}
	state, err := json.Marshal(s)
	if err != nil {
		panic("broker: encode mark: " + err.Error())
	}
	metas := []wal.Meta{{Name: metaMark, Value: append(binary.BigEndian.AppendUint64(nil, s.Txid), r.digest[:]...)}}
	for name := range r.dirty {
		m := wal.Meta{Name: metaCursor + name}
		if c, ok := r.cursors[name]; ok {
			m.Value = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, c.Txid), uint64(c.Time))
		}
		if bytes.Equal(m.Value, r.log.Meta(m.Name)) {
			delete(r.dirty, name) // an earlier mark was stored with it
			continue
		}
		metas = append(metas, m)
	}
	return raftstore.Snapshot{State: state, Metas: append(metas, r.markPoints()...)}
}

// Restore sets the state to a snapshot's and rebuilds the tables from the log's
// tail.
func (r *replica) Restore(state []byte) error {
	var s markState
	if err := json.Unmarshal(state, &s); err != nil || len(s.Digest) != sha256.Size {
		return fmt.Errorf("%w: snapshot state: %v", wal.ErrDamaged, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index, r.time, r.first, r.digest = s.Index, s.Time, s.First, wal.Digest(s.Digest)
	r.bytes, r.behind, r.cut = s.Bytes, s.Behind, s.Cut
	r.newest = place{s.NewestTime, s.NewestBytes}
	if r.lastTime = s.LastTime; r.lastTime == 0 {
		r.lastTime = s.Time
	}
	var err error
	if r.base, err = wal.DecodeBase(r.log.Meta(metaBase)); err != nil {
		return err
	}
	if err := r.restorePoints(); err != nil {
		return err
	}
	r.chain.begin(wal.Base{Txid: s.Txid, Digest: r.digest}, s.Index)
	for name, v := range r.log.Metas(metaCursor) {
		if len(v) != 16 {
			return fmt.Errorf("%w: cursor %s holds %d bytes", wal.ErrDamaged, name, len(v))
		}
		r.cursors[strings.TrimPrefix(name, metaCursor)] = cursor{
			Txid: binary.BigEndian.Uint64(v), Time: int64(binary.BigEndian.Uint64(v[8:])),
		}
	}
	return r.rebuild(s)
}

// position is the state that readers look at.
type position struct {
	mark    uint64 // high-water mark
	index   uint64 // no entry behind it may be shown
	first   uint64
	changed <-chan struct{}
}

func (r *replica) position() position {
	r.mu.Lock()
	defer r.mu.Unlock()
	return position{mark: r.table.Committed(), index: r.index, first: r.first, changed: r.changed}
}
