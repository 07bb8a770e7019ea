package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type getCmd struct {
	Partition partition `arg:"" name:"P" help:"Partition to look in, from 0."`
	Txid      *txid     `arg:"" optional:"" name:"TXID" help:"Id of the transaction, from 1."`

	Lock       lockName    `placeholder:"LOCK" help:"Instead of TXID: the last transaction that recorded a lock overlapping this one."`
	ID         string      `placeholder:"ID" help:"Instead of TXID: the last transaction with this message id."`
	Session    string      `placeholder:"NAME" help:"Instead of TXID: a transaction of this session, with --session-seq."`
	SessionSeq *sessionSeq `placeholder:"N" help:"Number of the transaction in the session, from 1 on."`
	JSON       bool        `name:"json" xor:"form" help:"Print one JSON object, as read --json does."`
	Payload    bool        `xor:"form" help:"Write the payload alone, byte for byte."`

	connection
}

func (*getCmd) Help() string {
	return `Examples:

  cantus get 0 812
  cantus get 0 --lock account.42 --json
  cantus get 0 --id 7f2c
  cantus get 0 --session w7f2c --session-seq 3
  cantus get 0 812 --payload >transfer.json

Exit status: 1 if there is no such transaction.`
}

// Run shows one transaction.
func (c *getCmd) Run(ctx context.Context, p *program) error {
	request := subjects.GetRequest{Lock: string(c.Lock), MsgID: c.ID, Session: c.Session}
	if c.SessionSeq != nil {
		request.SessionSeq = uint64(*c.SessionSeq)
	}
	given := 0
	for _, is := range []bool{c.Txid != nil, c.Lock != "", c.ID != "", c.Session != ""} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return usagef("name the transaction by its TXID, --lock, --id or --session, such as \"cantus get 0 812\"")
	case (c.Session != "") != (request.SessionSeq > 0):
		return usagef("--session and --session-seq go together: give a session and a number in it, from 1 on")
	case c.Txid != nil && *c.Txid == 0:
		return usagef("there is no transaction 0: txids begin at 1")
	case c.Txid != nil:
		request.Txid = uint64(*c.Txid)
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	l, err := c.open(ctx, "get")
	if err != nil {
		return err
	}
	defer l.close()
	msg, err := l.request(ctx, &nats.Msg{Subject: l.names.Get(int(c.Partition)), Data: body})
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return l.noLeader(ctx, int(c.Partition))
	case err != nil:
		return l.explain(err)
	}
	if e := refused(msg); e != nil {
		return readRefusal(e)
	}
	t, err := parseTransaction(msg, false)
	if err != nil {
		return err
	}
	return c.print(p.out, t)
}

func (c *getCmd) print(w io.Writer, t *transaction) error {
	switch {
	case c.JSON:
		return printTransaction(w, t)
	case c.Payload:
		_, err := w.Write(t.data)
		return err
	}
	t.describe(w)
	return nil
}

// describe prints a transaction over several lines, the payload last and
// with control characters escaped.
func (t *transaction) describe(w io.Writer) {
	field := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-17s%s\n", name+":", fmt.Sprintf(format, args...))
	}
	field("txid", "%d", t.Txid)
	field("partition", "%d", t.Partition)
	field("time", "%s", stamp(t.Time))
	field("kind", "%s", printable(t.Kind, len(t.Kind)))
	field("locks", "%s", t.locks())
	if t.HighWaterMark != nil {
		field("high-water mark", "%d", *t.HighWaterMark)
	}
	if t.Atomic != nil {
		field("atomic batch", "%s", t.Atomic)
	}
	if t.SessionSeq > 0 {
		field("session", "%s, number %d", t.Session, t.SessionSeq)
	}
	if t.Move != "" {
		field("moves", "%s", printable(t.Move, len(t.Move)))
	}
	if t.MsgID != "" {
		field("message id", "%s", printable(t.MsgID, len(t.MsgID)))
	}
	for _, h := range t.Headers {
		field("header", "%s: %s", printable(h.key, len(h.key)), printable(h.value, len(h.value)))
	}
	field("payload", "%d bytes", len(t.data))
	if t.Payload != nil && len(t.data) > 0 {
		fmt.Fprintln(w, printable(*t.Payload, len(t.data)))
	} else if len(t.data) > 0 {
		fmt.Fprintf(w, "%x\n", t.data)
	}
}
