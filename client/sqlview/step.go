package sqlview

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/client"
)

// applyAll applies those transactions of one partition that the database does
// not contain yet.
func (v *View) applyAll(ctx context.Context, txs []*client.Transaction) error {
	p := v.parts[txs[0].Partition]
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil { // moved in the meantime: txs do not follow the mark
		return context.Cause(ctx)
	}
	for {
		for len(txs) > 0 && txs[0].Txid <= p.mark {
			txs = txs[1:]
		}
		if len(txs) == 0 {
			return nil
		}
		at, err := v.step(ctx, p, txs)
		if err != nil {
			return err
		}
		if at.txid < p.mark {
			p.mark = at.txid
			return &client.MovedError{After: at.txid, Cluster: at.cluster}
		}
		p.mark = at.txid
	}
}

// step applies all of txs and moves the mark, in one database transaction, if
// the mark is where p has it. Otherwise it does nothing. It returns the mark as
// it is afterwards.
func (v *View) step(ctx context.Context, p *part, txs []*client.Transaction) (at mark, err error) {
	in, err := v.marks.db.BeginTx(ctx, nil)
	if err != nil {
		return at, &databaseError{err}
	}
	defer in.Rollback() // no effect after a commit
	last := end(txs[len(txs)-1])
	moved, err := v.marks.move(ctx, in, last, v.follower.Cluster(last.Partition), p.mark)
	if err != nil {
		return at, &databaseError{err}
	}
	if !moved {
		if at, err = v.marks.get(ctx, in, last.Partition); err != nil {
			return at, &databaseError{err}
		}
		return at, nil
	}
	for len(txs) > 0 {
		n := together(txs)
		if err := v.applyTogether(ctx, p, in, txs[:n]); err != nil {
			return at, err
		}
		txs = txs[n:]
	}
	if err := in.Commit(); err != nil {
		return at, commitError(err)
	}
	p.parkErr = nil
	return mark{txid: last.Txid}, nil
}

// end returns tx, or, if it is in an atomic batch, the last transaction of that
// as far as a mark knows it: a filter may have left that one out.
func end(tx *client.Transaction) *client.Transaction {
	after := tx.Atomic.Last - tx.Txid
	if tx.Atomic.Last == 0 || after == 0 {
		return tx
	}
	// The times in an atomic batch are a nanosecond apart.
	return &client.Transaction{Partition: tx.Partition, Txid: tx.Atomic.Last, Time: tx.Time.Add(time.Duration(after))}
}

// together returns how many transactions at the front of txs are of one atomic
// batch, 1 if the first one is in none.
func together(txs []*client.Transaction) int {
	n := 1
	for txs[0].Atomic.First != 0 && n < len(txs) && txs[n].Atomic == txs[0].Atomic {
		n++
	}
	return n
}

// applyTogether applies a transaction or an atomic batch, or parks it if that
// was decided.
func (v *View) applyTogether(ctx context.Context, p *part, in *sql.Tx, txs []*client.Transaction) error {
	parked := p.parkErr != nil && p.failedTxid == txs[0].Txid
	for _, tx := range txs {
		if parked {
			if err := v.marks.park(ctx, in, tx, p.parkErr); err != nil {
				return &databaseError{fmt.Errorf("park: %w", err)}
			}
			continue
		}
		if err := v.applyOne(ctx, in, tx); err != nil {
			if len(txs) > 1 {
				err = fmt.Errorf("txid %d: %w", tx.Txid, err)
			}
			return err
		}
	}
	return nil
}

// applyOne applies a transaction.
func (v *View) applyOne(ctx context.Context, in *sql.Tx, tx *client.Transaction) error {
	err := v.apply(ctx, in, tx)
	if err == nil {
		return nil
	}
	if transient(err) {
		return &databaseError{err}
	}
	// A broken connection may cause any error.
	if rollback := in.Rollback(); rollback != nil && !errors.Is(rollback, sql.ErrTxDone) {
		return &databaseError{errors.Join(err, rollback)}
	}
	if ping := v.marks.db.PingContext(ctx); ping != nil {
		return &databaseError{errors.Join(err, ping)}
	}
	return err
}

// onError is the OnError of the follower.
func (v *View) onError(tx *client.Transaction, err error, _ int) client.Decision {
	var database *databaseError
	if errors.As(err, &database) {
		return client.DecideRetry
	}
	p := v.parts[tx.Partition]
	if p.failedTxid != tx.Txid {
		p.failedTxid, p.attempts, p.parkErr = tx.Txid, 0, nil
	}
	p.attempts++
	if v.opts.Follow.OnError == nil {
		return client.DecideStop
	}
	switch decision := v.opts.Follow.OnError(tx, err, p.attempts); decision {
	case client.DecideSkip:
		p.parkErr = err // the next attempt parks it
		return client.DecideRetry
	default:
		return decision
	}
}
