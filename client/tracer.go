package client

import (
	"context"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Tracer makes traces of what a [Client] does. The module client/oteltrace has
// one for OpenTelemetry. Its methods, and the functions that they return, may
// be called concurrently, must not block, and must not call the client.
type Tracer interface {
	// Append is called when an append begins, with the caller's context. The
	// client adds header to the transaction, so that nodes and followers know
	// its trace; nil adds none. Unless end is nil, the client calls it once,
	// with the outcome. Append must not change or retain req.
	Append(ctx context.Context, prefix string, req *Request) (header nats.Header, end func(Receipt, error))
	// Handle is called before a handler is. The handler gets the context that
	// it returns, which derives from ctx. Unless end is nil, the client calls
	// it with the handler's error.
	Handle(ctx context.Context, h Handling) (handling context.Context, end func(error))
}

// Handling is a call of a handler, for a [Tracer].
type Handling struct {
	// Prefix is the first token of every subject.
	Prefix string
	// Group is that of [FollowOptions].
	Group string
	// Transactions are those that the handler is called with, at least one, all
	// of one partition. They must not be changed, nor the slice retained.
	Transactions []*Transaction
}

// addHeader adds what a Tracer adds to a transaction. An application's own
// header of the same name stays as it is.
func (f *Future) addHeader(req *Request, header nats.Header) error {
	for key, values := range header {
		if err := checkHeader(key, values); err != nil {
			return refusal(*subjects.Errorf(subjects.BadRequest, "the tracer's %v", err), req.Partition, req.ID, 0)
		}
		if _, own := req.Header[key]; own {
			continue
		}
		for _, v := range values {
			f.header = subjects.AppendField(f.header, key, v)
		}
	}
	f.size += len(f.header)
	return nil
}

// call calls the handler.
func (f *Follower) call(ctx context.Context, txs []*Transaction) error {
	t := f.c.opts.Tracer
	if t == nil {
		return f.handle(ctx, txs)
	}
	handling, end := t.Handle(ctx, Handling{Prefix: f.c.opts.Prefix, Group: f.opts.Group, Transactions: txs})
	err := f.handle(handling, txs)
	if end != nil {
		end(err)
	}
	return err
}
