package page

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// query answers a question about transactions.
type query func(ctx context.Context, v Viewer, q url.Values) (any, error)

// viewing returns the handler of a query, for viewers that are logged in.
func (p *Page) viewing(ask query) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, done := p.sessions.use(token(r))
		if v == nil {
			fail(w, http.StatusUnauthorized, notLoggedIn)
			return
		}
		defer done()
		ctx, cancel := context.WithTimeout(r.Context(), queryTime)
		defer cancel()
		found, err := ask(ctx, v, r.URL.Query())
		bad := queryError("")
		switch {
		case errors.As(err, &bad):
			fail(w, http.StatusBadRequest, err.Error())
		case err != nil:
			fail(w, http.StatusNotFound, err.Error())
		default:
			answer(w, http.StatusOK, found)
		}
	}
}

// queryError is an error about what was asked for.
type queryError string

func (e queryError) Error() string { return string(e) }

// number returns a number of a query; a missing one is 0 if it is optional.
func number(q url.Values, name string, bits int, optional bool) (uint64, error) {
	text := q.Get(name)
	if text == "" && optional {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		return 0, queryError(fmt.Sprintf("%s is %q: write a whole number from 0 on", name, text))
	}
	return n, nil
}

// place returns the partition and the txid of a query.
func place(q url.Values) (partition int, txid uint64, err error) {
	n, err := number(q, "partition", 16, false)
	if err != nil {
		return 0, 0, err
	}
	txid, err = number(q, "txid", 64, true)
	return int(n), txid, err
}

func transaction(ctx context.Context, v Viewer, q url.Values) (any, error) {
	partition, txid, err := place(q)
	if err != nil {
		return nil, err
	}
	if txid == 0 {
		return nil, queryError("there is no transaction 0: txids begin at 1")
	}
	return v.Transaction(ctx, partition, txid)
}

func around(ctx context.Context, v Viewer, q url.Values) (any, error) {
	partition, txid, err := place(q)
	if err != nil {
		return nil, err
	}
	mark, err := number(q, "mark", 64, true)
	if err != nil {
		return nil, err
	}
	if txid == 0 || q.Get("lock") == "" {
		return nil, queryError("name a transaction and a lock")
	}
	return v.Around(ctx, AroundQuery{Partition: partition, Txid: txid, Lock: q.Get("lock"), Mark: mark, Checked: q.Has("mark")})
}

func lock(ctx context.Context, v Viewer, q url.Values) (any, error) {
	partition, _, err := place(q)
	if err != nil {
		return nil, err
	}
	below, err := number(q, "below", 64, true)
	if err != nil {
		return nil, err
	}
	if q.Get("lock") == "" {
		return nil, queryError("name a lock, such as account.42")
	}
	return v.Lock(ctx, partition, q.Get("lock"), below)
}
