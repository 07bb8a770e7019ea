package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/broker/traceexport"
	"github.com/cantuslog/cantus/subjects"
)

// The types of flag values. Each is checked when it is parsed, whatever its
// source is, so that the error can name the flag, the variable or the line.
// Each error says what would be right.

// maxPartitions is the most partitions that a cluster can be founded with.
const maxPartitions = subjects.MaxPartitions

// The syntax of numbers. The packages that parse them accept more: signs, a
// comma inside a number, and Go's other bases.
var (
	wholeForm  = regexp.MustCompile(`^[0-9]+(_[0-9]+)*$`)
	numberForm = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?(e[0-9]+)?$`)
	bareForm   = regexp.MustCompile(`^[0-9]*[1-9][0-9]*$`)
	sizeForm   = regexp.MustCompile(`^[0-9]+(\.[0-9]+)? ?[A-Za-z]+$`)
)

// whole parses a whole number between least and most. Its digits may be grouped
// by underscores.
func whole(text []byte, least, most int64) (int64, bool) {
	n, err := strconv.ParseInt(strings.ReplaceAll(string(text), "_", ""), 10, 64)
	return n, err == nil && wholeForm.Match(text) && n >= least && n <= most
}

// strictPaths makes flags and arguments that take a path refuse an empty one,
// which would be the working directory for some and nothing for others.
func strictPaths() (all []kong.Option) {
	defaults := kong.NewRegistry().RegisterDefaults()
	for _, kind := range []string{"path", "existingfile"} {
		parse := defaults.ForNamedType(kind, reflect.TypeFor[string]())
		all = append(all, kong.NamedMapper(kind, kong.MapperFunc(func(ctx *kong.DecodeContext, to reflect.Value) error {
			if ctx.Scan.Peek().Value == "" {
				return errors.New(`"" is not a path: write one, such as /var/lib/cantus, or leave it out`)
			}
			return parse.Decode(ctx, to)
		})))
	}
	return all
}

// strictNumbers makes flags of Go's own types accept the same syntax.
func strictNumbers() []kong.Option {
	return []kong.Option{
		kong.TypeMapper(reflect.TypeFor[time.Duration](), word(func(text string, to reflect.Value) error {
			d, err := subjects.ParseDuration(text)
			to.SetInt(int64(d))
			return err
		})),
		kong.KindMapper(reflect.Int, word(setWhole)),
		kong.KindMapper(reflect.Int64, word(setWhole)),
		kong.KindMapper(reflect.Float64, word(func(text string, to reflect.Value) error {
			n, err := strconv.ParseFloat(text, 64)
			if err != nil || !numberForm.MatchString(text) || n == 0 && text[0] == '-' {
				return fmt.Errorf("%q is not a number, such as 5000 or 0.99", text)
			}
			to.SetFloat(n)
			return nil
		})),
	}
}

// setWhole sets an integer. A negative one is a default, or out of the flag's
// range, which its command reports.
func setWhole(text string, to reflect.Value) error {
	digits, negative := strings.CutPrefix(text, "-")
	n, ok := whole([]byte(digits), 0, math.MaxInt64)
	if !ok || negative && n == 0 {
		return fmt.Errorf("%q is not a whole number, such as 1000000", text)
	}
	if negative {
		n = -n
	}
	to.SetInt(n)
	return nil
}

// word calls set with the next word of a command line.
func word(set func(text string, to reflect.Value) error) kong.Mapper {
	return kong.MapperFunc(func(ctx *kong.DecodeContext, to reflect.Value) error {
		var text string
		if err := ctx.Scan.PopValueInto("value", &text); err != nil {
			return err
		}
		return set(text, to)
	})
}

// byteSize is a number of bytes, at least 1. It has a unit: 50 is more often
// meant as 50GiB than as 50 bytes.
type byteSize int64

func (s *byteSize) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if bareForm.Match(text) {
		return fmt.Errorf("%q is a size without a unit: write bytes with a unit, such as %sB for bytes, or KiB, MiB, GiB", text, text)
	}
	if err != nil || !sizeForm.Match(text) || n < 1 || n > 1<<62 {
		return fmt.Errorf("%q is not a size: write bytes with a unit, such as 256MiB, 1GiB or 500MB", text)
	}
	*s = byteSize(n)
	return nil
}

// scrubRate is a number of bytes a second, or -1 for "off".
type scrubRate int64

func (r *scrubRate) UnmarshalText(text []byte) error {
	if string(text) == "off" || string(text) == "0" {
		*r = -1
		return nil
	}
	var size byteSize
	if err := size.UnmarshalText(text); err != nil {
		return fmt.Errorf("%w; or off", err)
	}
	*r = scrubRate(size)
	return nil
}

// share is a part of a whole, 0 to 1.
type share float64

func (s *share) UnmarshalText(text []byte) error {
	n, err := strconv.ParseFloat(string(text), 64)
	if err != nil || !numberForm.Match(text) || text[0] == '-' || n > 1 {
		return fmt.Errorf("%q is not a share: 0 to 1, such as 0.01", text)
	}
	*s = share(n)
	return nil
}

// collectorURL is where traces go, "" for nowhere.
type collectorURL string

func (u *collectorURL) UnmarshalText(text []byte) error {
	at, err := traceexport.CheckURL(string(text))
	*u = collectorURL(at)
	return err
}

// count is a number of things, at least 1.
type count int

func (c *count) UnmarshalText(text []byte) error {
	n, ok := whole(text, 1, math.MaxInt)
	if !ok {
		return fmt.Errorf("%q is not a number from 1 on, such as 1000000", text)
	}
	*c = count(n)
	return nil
}

// partitionCount is how many partitions a cluster has, 0 for unspecified.
type partitionCount int

func (c *partitionCount) UnmarshalText(text []byte) error {
	n, ok := whole(text, 1, maxPartitions)
	if !ok {
		return fmt.Errorf("%q is not a number of partitions: 1 to %d", text, maxPartitions)
	}
	*c = partitionCount(n)
	return nil
}

// partition is the number of a partition.
type partition int

func (p *partition) UnmarshalText(text []byte) error {
	n, ok := whole(text, 0, maxPartitions-1)
	if !ok {
		return fmt.Errorf("%q is not a partition: 0, 1, … up to one less than the cluster has", text)
	}
	*p = partition(n)
	return nil
}

// txid is the id of a transaction, or 0.
type txid uint64

func (t *txid) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a transaction id: a whole number from 0 on", text)
	}
	*t = txid(n)
	return nil
}

// duration is a positive duration.
type duration time.Duration

func (d *duration) UnmarshalText(text []byte) error {
	v, err := subjects.ParseDuration(string(text))
	if err != nil {
		return err
	}
	if v == 0 {
		return fmt.Errorf("%q is not a duration above 0, such as 500ms, 5s or 2m", text)
	}
	*d = duration(v)
	return nil
}

// idWindow is a duration, or [broker.WholeLog] for "log"; 0 is the default.
type idWindow time.Duration

func (w *idWindow) UnmarshalText(text []byte) error {
	if string(text) == "log" {
		*w = idWindow(broker.WholeLog)
		return nil
	}
	var d duration
	if err := d.UnmarshalText(text); err != nil {
		return fmt.Errorf("%w; or log", err)
	}
	*w = idWindow(d)
	return nil
}

// listenAddr is a host:port to listen on; port 0 chooses a free one.
type listenAddr string

func (a *listenAddr) UnmarshalText(text []byte) error {
	_, port, err := net.SplitHostPort(string(text))
	if _, ok := whole([]byte(port), 0, 65535); err != nil || !ok {
		return fmt.Errorf("%q is not HOST:PORT, such as 127.0.0.1:4222, [::1]:4222, or :4222 for every interface", text)
	}
	*a = listenAddr(text)
	return nil
}

// optionalAddr is a listenAddr, or empty for "off".
type optionalAddr string

func (a *optionalAddr) UnmarshalText(text []byte) error {
	if string(text) == "off" {
		*a = ""
		return nil
	}
	var addr listenAddr
	if err := addr.UnmarshalText(text); err != nil {
		return fmt.Errorf("%w; or off", err)
	}
	*a = optionalAddr(addr)
	return nil
}

// token is a name that is one NATS token.
type token string

func (t *token) UnmarshalText(text []byte) error {
	if err := subjects.CheckKind(string(text)); err != nil {
		return fmt.Errorf("%q is not a name: 1 to %d bytes without white space, control characters, '.', '*' or '>'",
			text, subjects.MaxToken)
	}
	*t = token(text)
	return nil
}

// ownerName is the owner of a cursor.
type ownerName string

func (o *ownerName) UnmarshalText(text []byte) error {
	if subjects.CheckOwner(string(text)) != nil {
		return fmt.Errorf("%q is not an owner: a name of 1 to %d bytes without white space, control characters, '.', '*' or '>', or session: and the name of a session",
			text, subjects.MaxToken)
	}
	*o = ownerName(text)
	return nil
}

// sessionSeq is the number of a transaction in its session.
type sessionSeq uint64

func (n *sessionSeq) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil || v == 0 {
		return fmt.Errorf("%q is no number in a session: give a whole number from 1 on", text)
	}
	*n = sessionSeq(v)
	return nil
}

// sessionName is the name of a session.
type sessionName string

func (s *sessionName) UnmarshalText(text []byte) error {
	if err := subjects.CheckSession(string(text)); err != nil {
		return plain(err)
	}
	*s = sessionName(text)
	return nil
}

// nodeNames is a list of names, separated by commas.
type nodeNames []string

func (l *nodeNames) UnmarshalText(text []byte) error {
	var all nodeNames
	for word := range strings.SplitSeq(string(text), ",") {
		var t token
		if err := t.UnmarshalText([]byte(strings.TrimSpace(word))); err != nil {
			return err
		}
		all = append(all, string(t))
	}
	*l = all
	return nil
}

// dialAddr is a host:port to connect to.
type dialAddr string

func (a *dialAddr) UnmarshalText(text []byte) error {
	host, port, err := net.SplitHostPort(string(text))
	if _, ok := whole([]byte(port), 1, 65535); err != nil || host == "" || !ok || strings.Contains(host, ",") {
		return fmt.Errorf("%q is not HOST:PORT, such as 10.0.0.2:6222", text)
	}
	*a = dialAddr(text)
	return nil
}

// addresses is a list of host:port, separated by commas.
type addresses []string

func (l *addresses) UnmarshalText(text []byte) error {
	var all addresses
	for word := range strings.SplitSeq(string(text), ",") {
		var a dialAddr
		if err := a.UnmarshalText([]byte(strings.TrimSpace(word))); err != nil {
			return err
		}
		all = append(all, string(a))
	}
	*l = all
	return nil
}

// replicaCount is how many replicas a partition has.
type replicaCount int

func (c *replicaCount) UnmarshalText(text []byte) error {
	switch string(text) {
	case "1", "3", "5":
		*c = replicaCount(text[0] - '0')
		return nil
	}
	return fmt.Errorf("%q is not a number of replicas: 1, 3 or 5 (an even number survives no more failures than one less)", text)
}

// prefix begins every subject.
type prefix string

func (p *prefix) UnmarshalText(text []byte) error {
	if err := subjects.CheckPrefix(string(text)); err != nil {
		return plain(err)
	}
	*p = prefix(text)
	return nil
}

// inboxPrefix begins the subjects of answers.
type inboxPrefix string

func (p *inboxPrefix) UnmarshalText(text []byte) error {
	s := strings.TrimSuffix(strings.TrimSuffix(string(text), ">"), ".")
	switch {
	case s == "" || strings.ContainsAny(s, "*> \t\r\n") || strings.Contains("."+s+".", ".."):
		return fmt.Errorf("%q begins no subject: write names joined by dots, such as _INBOX_writer", text)
	case s != string(text):
		return fmt.Errorf("%q: write it without %q: %s", text, string(text[len(s):]), s)
	}
	*p = inboxPrefix(s)
	return nil
}

// lockName is the name of a lock, a point or a subtree.
type lockName string

func (l *lockName) UnmarshalText(text []byte) error {
	if strings.Contains(string(text), ",") {
		return fmt.Errorf("lock %q holds a comma: give one name; a flag that takes several is repeated, such as --write a --write b", text)
	}
	if err := subjects.CheckLock(string(text)); err != nil {
		return plain(err)
	}
	*l = lockName(text)
	return nil
}

// queryItem is an item of a query or of a condition.
type queryItem subjects.QueryItem

func (q *queryItem) UnmarshalText(text []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var item subjects.QueryItem
	if err := decoder.Decode(&item); err != nil || decoder.More() || len(item.Kinds)+len(item.Locks) == 0 {
		why := ""
		if err != nil && strings.Contains(err.Error(), "unknown field") {
			why = strings.TrimPrefix(err.Error(), "json: ") + ": "
		}
		return fmt.Errorf(`%q is not an item: %swrite kinds, locks or both as JSON, such as {"kinds":["pay"],"locks":["account.42"]}; repeat the flag for several`, text, why)
	}
	for _, k := range item.Kinds {
		if err := subjects.CheckKind(k); err != nil {
			return plain(err)
		}
	}
	for _, l := range item.Locks {
		if err := subjects.CheckLock(l); err != nil {
			return plain(err)
		}
	}
	*q = queryItem(item)
	return nil
}

// plain removes the protocol's reason and code from an error about a name: they
// mean nothing on the command line.
func plain(err error) error {
	if e, ok := errors.AsType[*subjects.Error](err); ok {
		return fmt.Errorf("%s", e.Message)
	}
	return err
}
