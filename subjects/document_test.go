package subjects_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// These tests compare subjects.md with the code, in both directions.

// document reads subjects.md.
func document(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../subjects.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tables returns the body rows of every table whose head has these cells first.
func tables(t *testing.T, head ...string) (rows [][]string) {
	t.Helper()
	inside, body := false, false
	for line := range strings.Lines(document(t)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			inside, body = false, false
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case body:
			rows = append(rows, cells)
		case inside: // the rule under the head
			body = true
		default:
			inside = len(cells) >= len(head) && slices.Equal(cells[:len(head)], head)
		}
	}
	if len(rows) == 0 {
		t.Fatalf("subjects.md has no table that begins with %q", head)
	}
	return rows
}

// code takes the only `…` out of a cell.
func code(t *testing.T, cell string) string {
	t.Helper()
	parts := strings.Split(cell, "`")
	if len(parts) != 3 || parts[1] == "" {
		t.Fatalf("cell %q does not hold one name", cell)
	}
	return parts[1]
}

// firstColumn returns the names in the first cells of tables, sorted, each
// once.
func firstColumn(t *testing.T, rows [][]string) (names []string) {
	t.Helper()
	for _, r := range rows {
		names = append(names, code(t, r[0]))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// constants returns the exported constants of the package whose names begin so,
// by name, as its source has them.
func constants(t *testing.T, prefixes ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok {
				for i, name := range spec.Names {
					if name.IsExported() && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name.Name, p) }) {
						found[name.Name] = evaluate(t, spec.Values[i])
					}
				}
			}
			return true
		})
	}
	return found
}

// evaluate returns the value of a constant expression that names no other.
func evaluate(t *testing.T, e ast.Expr) string {
	t.Helper()
	v, err := types.Eval(token.NewFileSet(), nil, token.NoPos, types.ExprString(e))
	if err != nil {
		t.Fatal(err)
	}
	if v.Value.Kind() == constant.String {
		return constant.StringVal(v.Value)
	}
	return v.Value.ExactString()
}

func TestDocumentedSubjects(t *testing.T) {
	var built []string
	names := reflect.ValueOf(subjects.Names{})
	for i := range names.NumMethod() {
		if names.Type().Method(i).Type.Out(0) == names.Type() {
			continue // other names
		}
		var args []reflect.Value
		for in := range names.Method(i).Type().Ins() {
			if in.Kind() == reflect.Int {
				args = append(args, reflect.ValueOf(7))
			} else {
				args = append(args, reflect.ValueOf("NAME"))
			}
		}
		built = append(built, names.Method(i).Call(args)[0].String())
	}
	slices.Sort(built)
	placeholder := regexp.MustCompile(`<[a-z]+>`)
	var documented []string
	for _, s := range firstColumn(t, tables(t, "subject", "kind")) {
		s = strings.ReplaceAll(s, "<p>", "7")
		documented = append(documented, placeholder.ReplaceAllString(s, "NAME"))
	}
	slices.Sort(documented)
	if !slices.Equal(documented, built) {
		t.Errorf("subjects.md has %q\nthe code has    %q", documented, built)
	}
}

func TestDocumentedHeaders(t *testing.T) {
	headers := slices.Sorted(maps.Values(constants(t, "Header")))
	headers = slices.Compact(headers)
	if documented := firstColumn(t, tables(t, "header")); !slices.Equal(documented, headers) {
		t.Errorf("subjects.md has the headers %q\nthe code has                %q", documented, headers)
	}
	var ofAppends []string
	for _, h := range headers {
		if subjects.IsRequestHeader(h) {
			ofAppends = append(ofAppends, h)
		}
	}
	if documented := firstColumn(t, tables(t, "header", "occurs")); !slices.Equal(documented, ofAppends) {
		t.Errorf("subjects.md has for appends %q\nthe code has                %q", documented, ofAppends)
	}
}

func TestDocumentedReasons(t *testing.T) {
	documented := map[subjects.Reason]int{}
	for _, r := range tables(t, "code", "reason") {
		n, err := strconv.Atoi(r[0])
		if err != nil {
			t.Fatalf("code %q: %v", r[0], err)
		}
		reason := subjects.Reason(code(t, r[1]))
		if _, twice := documented[reason]; twice {
			t.Errorf("subjects.md has %s twice", reason)
		}
		documented[reason] = n
	}
	if all := subjects.Reasons(); !maps.Equal(documented, all) {
		t.Errorf("subjects.md has %v\nthe code has    %v", documented, all)
	}
}

func TestDocumentedLimits(t *testing.T) {
	limits := constants(t, "Max", "Default")
	for name, value := range limits {
		if _, err := strconv.Atoi(value); err != nil {
			delete(limits, name) // a default that is a word
		}
	}
	documented := map[string]string{}
	for _, r := range tables(t, "limit", "value") {
		documented[code(t, r[3])] = strings.ReplaceAll(r[1], ",", "")
		if over := r[2]; over != "" && !slices.Contains([]subjects.Reason{subjects.TooLarge, subjects.BadRequest}, subjects.Reason(code(t, over))) {
			t.Errorf("over a limit is %s", over)
		}
	}
	if !maps.Equal(documented, limits) {
		t.Errorf("subjects.md has %v\nthe code has    %v", documented, limits)
	}
}

// TestDocumentedReadFields compares the table of a read's fields with the type,
// and its numbers with the limits.
func TestDocumentedReadFields(t *testing.T) {
	var fields []string
	for f := range reflect.TypeFor[subjects.ReadRequest]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		fields = append(fields, name)
	}
	slices.Sort(fields)
	rows := tables(t, "field", "default")
	if documented := firstColumn(t, rows); !slices.Equal(documented, fields) {
		t.Errorf("subjects.md has %q\nthe code has    %q", documented, fields)
	}
	for _, r := range rows {
		for field, want := range map[string][2]int{
			"max":       {subjects.DefaultReadCount, subjects.MaxReadCount},
			"max_bytes": {subjects.DefaultReadBytes, subjects.MaxReadBytes},
		} {
			if code(t, r[0]) != field {
				continue
			}
			got := strings.ReplaceAll(r[1]+" / "+r[2], ",", "")
			if got != strconv.Itoa(want[0])+" / 1 to "+strconv.Itoa(want[1]) {
				t.Errorf("%s: default and range are %q, want %v", field, got, want)
			}
		}
	}
}

// TestDocumentedStatus compares the table of the status with its types.
func TestDocumentedStatus(t *testing.T) {
	documented := map[string][]string{}
	in := ""
	for _, r := range tables(t, "in", "field") {
		if r[0] != "" {
			in = r[0]
		}
		for _, name := range strings.Split(r[1], ", ") {
			documented[in] = append(documented[in], code(t, name))
		}
	}
	for in, typ := range map[string]reflect.Type{
		"the status":  reflect.TypeFor[subjects.ClusterStatus](),
		"a node":      reflect.TypeFor[subjects.NodeStatus](),
		"a partition": reflect.TypeFor[subjects.PartitionStatus](),
		"a replica":   reflect.TypeFor[subjects.ReplicaStatus](),
	} {
		var fields []string
		for f := range typ.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "error" {
				fields = append(fields, name)
			}
		}
		slices.Sort(fields)
		slices.Sort(documented[in])
		if !slices.Equal(documented[in], fields) {
			t.Errorf("%s: subjects.md has %q\nthe code has    %q", in, documented[in], fields)
		}
	}
}

func TestDocumentedOverlap(t *testing.T) {
	for _, r := range tables(t, "lock", "lock", "overlap") {
		a, b := code(t, r[0]), code(t, r[1])
		for _, name := range []string{a, b} {
			if err := subjects.CheckLock(name); err != nil {
				t.Errorf("%q: %v", name, err)
			}
		}
		if got := checkOverlap(t, a, b); got != (r[2] == "yes") {
			t.Errorf("%q and %q: overlap is %v, subjects.md says %s", a, b, got, r[2])
		}
	}
}

// TestDocumentedJSON decodes every example strictly into the type that is named
// above it, and checks that nothing is lost and nothing is left out.
func TestDocumentedJSON(t *testing.T) {
	types := map[string]any{
		"Reply": new(subjects.Reply), "BatchReply": new(subjects.BatchReply), "ReadRequest": new(subjects.ReadRequest),
		"GetRequest": new(subjects.GetRequest), "CursorRequest": new(subjects.CursorRequest), "CursorReply": new(subjects.CursorReply),
		"ClusterInfo": new(subjects.ClusterInfo), "PartitionInfo": new(subjects.PartitionInfo), "InfoRequest": new(subjects.InfoRequest),
		"AdminRequest": new(subjects.AdminRequest), "AdminReply": new(subjects.AdminReply),
		"BatchesRequest": new(subjects.BatchesRequest), "CursorsRequest": new(subjects.CursorsRequest), "CursorsReply": new(subjects.CursorsReply),
		"TrimRequest": new(subjects.TrimRequest), "TrimReply": new(subjects.TrimReply),
		"RetentionRequest": new(subjects.RetentionRequest), "RetentionQuery": new(subjects.RetentionQuery), "RetentionReply": new(subjects.RetentionReply),
		"NamespaceRequest": new(subjects.NamespaceRequest),
		"ClusterStatus":    new(subjects.ClusterStatus), "RestoreRequest": new(subjects.RestoreRequest), "RestoreReply": new(subjects.RestoreReply),
	}
	text := document(t)
	examples := regexp.MustCompile("(?s)<!-- json: (\\w+) -->\n```json\n(.*?)```").FindAllStringSubmatch(text, -1)
	if all := strings.Count(text, "```json"); all != len(examples) {
		t.Errorf("%d of %d examples have no type above them", all-len(examples), all)
	}
	seen := map[string]bool{}
	for _, e := range examples {
		example := []byte(e[2])
		if types[e[1]] == nil {
			t.Fatalf("no type %s", e[1])
		}
		seen[e[1]] = true
		value := reflect.New(reflect.TypeOf(types[e[1]]).Elem()).Interface()
		d := json.NewDecoder(bytes.NewReader(example))
		d.DisallowUnknownFields()
		if err := d.Decode(value); err != nil {
			t.Errorf("%s: %v\n%s", e[1], err, example)
			continue
		}
		again, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := decoded(t, again), decoded(t, example); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: subjects.md has\n%v\nthe code gives\n%v", e[1], want, got)
		}
	}
	for name := range types {
		if !seen[name] {
			t.Errorf("subjects.md has no example of %s", name)
		}
	}
}

func decoded(t *testing.T, b []byte) (v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// dump returns the bytes of the example in hexadecimal behind a heading.
func dump(t *testing.T, heading string) []byte {
	t.Helper()
	_, rest, ok := strings.Cut(document(t), "\n"+heading+"\n")
	if ok {
		_, rest, ok = strings.Cut(rest, "```hex\n")
	}
	if !ok {
		t.Fatal("no example")
	}
	lines, _, _ := strings.Cut(rest, "```")
	var digits strings.Builder
	for line := range strings.Lines(lines) {
		bytes, _, _ := strings.Cut(line, "   ")
		digits.WriteString(strings.ReplaceAll(strings.TrimSpace(bytes), " ", ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDocumentedBatch compares the batch message in hexadecimal with the
// encoding of the same two transactions.
func TestDocumentedBatch(t *testing.T) {
	got := dump(t, "## Batch")
	var want []byte
	for _, item := range []struct {
		header  []byte
		payload string
	}{{appendBlock(nil, []field{{subjects.HeaderAppendLock, "a"}}), "hi"}, {nil, "x"}} {
		want = binary.BigEndian.AppendUint32(want, uint32(len(item.header)))
		want = binary.BigEndian.AppendUint32(want, uint32(len(item.payload)))
		want = append(append(want, item.header...), item.payload...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("subjects.md has\n%x\nit should be\n%x", got, want)
	}
	if !strings.Contains(document(t), strconv.Itoa(len(want))+" bytes: the first") {
		t.Errorf("the example has %d bytes, and the text says otherwise", len(want))
	}
}

// TestDocumentedPacked does the same for a packed message.
func TestDocumentedPacked(t *testing.T) {
	at := time.Date(2026, 11, 22, 9, 0, 0, 123456789, time.UTC).UnixNano()
	want := subjects.AppendPacked(nil, subjects.Packed{
		Txid: 813, Time: at, Header: appendBlock(nil, []field{{subjects.HeaderAppendLock, "a"}}), Payload: []byte("hi"),
	})
	want = subjects.AppendPacked(want, subjects.Packed{Txid: 814, Time: at + 1, Payload: []byte("x")})
	if got := dump(t, "### Packed reads"); !bytes.Equal(got, want) {
		t.Errorf("subjects.md has\n%x\nit should be\n%x", got, want)
	}
	if !strings.Contains(document(t), strconv.Itoa(len(want))+" bytes: txid 813") {
		t.Errorf("the example has %d bytes, and the text says otherwise", len(want))
	}
}

// TestDocumentedWords checks the constants that are in no table.
func TestDocumentedWords(t *testing.T) {
	text := document(t)
	for name, value := range constants(t, "Status", "DefaultKind", "DefaultPrefix") {
		if !regexp.MustCompile("[`. ]" + regexp.QuoteMeta(value) + "[`. ]").MatchString(text) {
			t.Errorf("%s: subjects.md does not say %q", name, value)
		}
	}
}

// TestDocumentedSignature checks the example of a signature with the code, and
// the code with the example.
func TestDocumentedSignature(t *testing.T) {
	_, rest, ok := strings.Cut(document(t), "```signature\n")
	if !ok {
		t.Fatal("no example")
	}
	lines, _, _ := strings.Cut(rest, "```")
	example := map[string]string{}
	for line := range strings.Lines(lines) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		example[name] = strings.ReplaceAll(strings.TrimSpace(value), `\n`, "\n")
	}
	message := dump(t, "### Packed reads")
	key := ed25519.NewKeyFromSeed([]byte("an example of a seed of 32 bytes"))
	hashes := string(subjects.AppendFeedHash(nil, message))
	want := map[string]string{
		"feed_key":               subjects.FeedKey(key.Public().(ed25519.PublicKey)),
		subjects.HeaderHashes:    hashes,
		subjects.HeaderSignature: subjects.SignFeed(key, 0, hashes),
		"signed":                 example["signed"],
	}
	if !maps.Equal(example, want) {
		t.Errorf("subjects.md has\n%v\nthe code gives\n%v", example, want)
	}
	signature, err := base64.StdEncoding.DecodeString(example[subjects.HeaderSignature])
	if err != nil || !ed25519.Verify(key.Public().(ed25519.PublicKey), []byte(example["signed"]), signature) {
		t.Errorf("the signature is not of %q: %v", example["signed"], err)
	}
}
