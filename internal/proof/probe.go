package proof

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/client"
)

// Probe is a test of Waltz. The payload of each transaction is its writer's
// high-water mark plus one, and all transactions have the same write lock. So
// each payload is the transaction's own txid, unless one was computed from a
// stale state, lost, or appended twice.
type Probe struct {
	// Writers is the number of writers. Each appends Each transactions, on its
	// own connection.
	Writers, Each int
	// Failures is how often the leader fails during the test.
	Failures int
}

// Run runs the probe on an empty log. It returns an error if a guarantee was
// violated.
func (p Probe) Run(ctx context.Context, log Log) (err error) {
	writers := make([]*writer, p.Writers)
	defer func() {
		for _, w := range writers {
			if w != nil {
				err = errors.Join(err, w.close())
			}
		}
	}()
	for i := range writers {
		if writers[i], err = newWriter(log, func(context.Context, *client.Transaction) error { return nil }); err != nil {
			return err
		}
	}
	r := &probing{known: map[uint64]bool{}, committed: newProgress()}
	group, running := errgroup.WithContext(ctx)
	for _, w := range writers {
		group.Go(func() error { return r.write(running, w, p.Each) })
	}
	group.Go(func() error { return r.committed.fail(running, log, p.Failures, p.Writers*p.Each) })
	if err := group.Wait(); err != nil {
		return err
	}
	return r.check(ctx, log)
}

// probing is the state of a running probe.
type probing struct {
	committed *progress

	mu      sync.Mutex
	known   map[uint64]bool // txids of which writers have receipts
	unknown int             // number of transactions whose outcome is unknown
}

// write appends a writer's transactions.
func (r *probing) write(ctx context.Context, w *writer, count int) error {
	for range count {
		receipt, err := w.app.Transact(ctx, 0, func(req *client.Request) error {
			req.WriteLock("probe")
			req.Set("probe", fmt.Append(nil, req.HighWaterMark+1))
			return nil
		})
		switch {
		case receipt.Txid != 0:
			r.mu.Lock()
			twice := r.known[receipt.Txid]
			r.known[receipt.Txid] = true
			r.mu.Unlock()
			if twice {
				return fmt.Errorf("two transactions have the txid %d", receipt.Txid)
			}
		case errors.Is(err, client.ErrUnknown) && ctx.Err() == nil:
			r.mu.Lock()
			r.unknown++
			r.mu.Unlock()
		default:
			return err
		}
		r.committed.add()
	}
	return nil
}

// check reads the whole log and checks it.
func (r *probing) check(ctx context.Context, log Log) error {
	all, err := readAll(ctx, log)
	if err != nil {
		return err
	}
	for i, tx := range all {
		if tx.Txid != uint64(i+1) {
			return fmt.Errorf("txid %d follows %d", tx.Txid, i)
		}
		if string(tx.Payload) != fmt.Sprint(tx.Txid) {
			return fmt.Errorf("txid %d was computed as %s, from a stale state", tx.Txid, tx.Payload)
		}
		delete(r.known, tx.Txid)
	}
	if len(r.known) > 0 {
		return fmt.Errorf("%d transactions have receipts and are not in the log", len(r.known))
	}
	if committed := int(r.committed.done.Load()) - r.unknown; len(all) < committed || len(all) > committed+r.unknown {
		return fmt.Errorf("the log has %d transactions: %d were committed, and the outcome of %d is unknown", len(all), committed, r.unknown)
	}
	return nil
}
