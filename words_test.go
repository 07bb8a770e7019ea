package cantus_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
)

// retired is a word or a phrase that the project no longer uses.
type retired struct {
	// pattern is a regular expression. A space in it also matches a line break,
	// with the mark of a comment.
	pattern string
	instead string // what to write
	bad     string // a text that pattern must find, one per line
	// legit, if set, matches longer phrases in which the words are right. A
	// match of pattern within one of them does not count.
	legit string
	good  string            // texts in which nothing may be found, one per line
	files map[string]string // files in which the word stays, and why
}

// retiredWords is the list. It has words of an earlier idiom of the code, and
// constructions that are not plain English.
var retiredWords = []retired{
	// Names.
	{
		pattern: `\b[fF]lights?\b|flightDepth`, instead: "batch, in-flight batch, inflight",
		legit: `[iI]n( |-)flight\b|flight recorder`,
		bad:   "type flight struct\nthe flights of a tenure", good: "a batch in flight\nan in-flight batch\ninFlight",
	},
	{
		pattern: `[fF]lying|\b(fly|flies|flew)\b|\b(has|have|had) landed\b`, instead: "in flight, inflight; propose; acknowledged",
		bad: "n.flying\nwhat flew for a lock\nwhen they have landed",
	},
	{
		pattern: `\b(un)?[sS]ettl(e|es|ed|er|ing)([A-Z]\w*)?\b|[a-z]Settl`, instead: "complete, answer, resolve; converge, placed",
		bad: "c.settle()\nthe settler\nunsettled\nTestCloseSettlesIt", good: "setTLS",
	},
	{
		pattern: `\b[rR]oster|[cC]ontestant|\b[sS]eats?\b|\b[sS]ittings?\b|\bdues\b`, instead: "request pool; system under test; worker configuration; run; schedule",
		legit: `"kitten", "sitting"|examples/seats`,
		files: map[string]string{"examples/seats/main.go": "those of a theatre", "examples/seats/main_test.go": "the same"},
		bad:   "the roster\nContestants take turns\na seat\nof this sitting\ndues",
	},
	{
		pattern: `\b[pP]osters?\b|paced(Worker|InFlight)|\bpartition\.(readTerm|runLeader)\b|\b(import|restore)Place\b`,
		instead: "outbox; openLoopWorker; replica; importProgress, logEnd",
		bad:     "type poster interface\npacedWorker\nsee partition.readTerm\nan importPlace",
	},
	{
		pattern: `\bfits? to\b`, instead: "fit",
		bad: "it does not fit to the log",
	},
	{
		pattern: `turnBack|turnAway|[tT]urned[aA]way|[tT]urn(s|ed|ing)? (away|back)\b`, instead: "reject, refuse",
		bad: "p.turnBack(m)\ncheckTurnedAway\nit is turned away",
	},
	{
		pattern: `makeWay|letGo|\blet(s|ting)? go\b|passOn\b|handOver|\bhand-overs?\b|hands? over to|\bheirs?\b|awaitSuccessor|lastWords|last words`,
		instead: "transfer, requestTransfer, forward, transferee, flush; release, remove",
		bad:     "p.makeWay()\nletGo\nthe oldest are not let go\na hand-over\nits heir\nits last words", good: "it hands over a message",
	},
	{
		pattern: `\b[dD]eaf(en)?\b|\b[iI]ntake\b`, instead: "draining, drain; without a feed; paused",
		bad: "deaf *node\nn.intake",
	},
	{
		pattern: `takeBack|oweTerm|raiseHead|\b[oO]we[sd]?\b`, instead: "undo, flushPendingTerm, trimPrefix; pending, due",
		bad: "l.takeBack()\nowed atomic.Int64\nl.oweTerm()",
	},
	{
		pattern: `[oO]rphan`, instead: "a group whose leader's process has ended",
		bad: "orphaned groups",
	},
	{
		pattern: `[sS]tranger`, instead: "outsider, intruder; unknown node; newcomer",
		bad: "a stranger's message\nnewStranger",
	},
	{
		pattern: `[nN]amesake|complainOf|\b[cC]omplain`, instead: "name conflict, node with another's name; report, reject",
		bad: "c.namesake()\np.complain(err)\nwhat was complained of",
	},
	{
		pattern: `[wW]orthwhile|\b[bB]eaten\b|\b[bB]eats?\b|\b[hH]urry\b`, instead: "shouldFlush; heartbeat, handler; flush",
		bad: "q.worthwhile()\nbeaten\na beat", good: "a heartbeat",
	},
	{
		pattern: `\b[hH]ellos\b|[a-z]Hellos?\b|\bhello[A-Z{]|\b(a|A|the|The|each|every|this|last|next|first|newest|old|older|signed|replayed) hello\b|[)*( ]hello( \{|\))|\bh hello\b`,
		instead: "announcement",
		legit:   `dmin\("?hello|dmin\.hello`,
		bad:     "it says so in its hellos\nhelloInterval\nfunc decodeHello\neach hello lists\nfunc (h hello)", good: "cantus.admin.hello\necho hello | cantus append",
	},
	{
		pattern: `\b[gG]round(ed)?\b|\b[uU]nsure`, instead: "dependsOn, the transaction that it depends on; unconfirmed",
		legit: `ground truth`,
		bad:   "refusals wait for their ground\ngrounded\nunsure", good: "in the background\nthe ground truth",
	},
	{
		pattern: `\b[mM]end(s|ed|ing)?\b`, instead: "repair, correct, heal, resolve; transient (of an error)",
		bad: "mends(err)\nwhen it is mended", good: "we recommend it",
	},
	{
		pattern: `\bcuttable\b|\b(cuts?|cutting) (its|the|a|that|every|each|raft's)( \w+'s)? (log|logs|head)\b|\b([lL]ogs?|head|[oO]ne in which nothing is appended any more) (is|are|was|were|can be|has been) cut\b([^-, ]| [^os])|` +
			`\bcut at a point\b|\bplaces? (where|before what) [^.]{0,60}cut\b|\bsteps? of a cut\b|\b[tT]he cut is made\b|\bcan cut once\b`,
		instead: "trim, trim point (of the head); truncate (of the end)",
		bad:     "n1 has cut its log\nthe log is cut.\nthe log is cut whole\ncuttable\nRaft never cuts the log's head",
		good:    "nodes that can be cut off\na log that is cut short\na table cut short\na power cut",
	},
	{
		pattern: `\b[pP]romises?\b`, instead: "asynchronous write, AppendAsync",
		bad: "wal.Log.Promise",
	},
	{
		pattern: `\b[mM]arkers?\b`, instead: "snapshot",
		legit: "[\"`]marker[\"`]",
		bad:   "the last marker", good: "stored under the key `marker`",
	},
	{
		pattern: `[dD]oubt`, instead: "suspicion, suspected; uncertain",
		bad: "m.beginDoubt(why)\nwhile there is doubt\nInDoubt",
	},
	{
		pattern: `[dD]isput|[aA]ccus(er|ed|es)\b|\b[dD]istrust`, instead: "halt, halted; reporter; reject",
		legit: `"distrustful"`,
		bad:   "f.endDispute()\nits accuser\ng.distrust(err)",
	},
	{
		pattern: `[a-z]Claims\b|\bclaims(Version|InTransit)\b|\b(its|their|other's|peer's|dialer's|node's|malformed|newer) claims?\b`,
		instead: "generation report; the payload of a handshake",
		legit:   `jwt\.\w*Claims`,
		bad:     "the other's claims\nerrClaims\nclaimsVersion", good: "a member claims it\njwt.NewUserClaims",
	},
	{
		pattern: `\b[cC]rews?\b|newCrew`, instead: "members",
		bad: "type crew struct\nnewCrew",
	},
	{
		pattern: `\btold\.[a-z]|\.told\b|\btold (tally|func)\b`, instead: "answered, acked",
		bad: "l.told(sent)\nvar told tally\ntold.run(l)", good: "as it was told.\nit is told to stop",
	},
	{
		pattern: `\b(un|re|write|read|Un)[sS]eal(ed)?\b|[sS]ealed file`, instead: "checksummed file (of JSON); a seal is the journal's",
		bad: "writeSealed(path)\na sealed file\nunseal(b)", good: "the seal of a frame",
	},
	{
		pattern: `\b[sS]ealed (cluster )?secrets?\b|\bseal(s|ed)? (it|the( cluster)? secret|a secret)\b|\bsecret(, | is | was )sealed\b`, instead: "wrap, wrapped",
		bad: "a sealed secret\nit seals the secret\nthe secret, sealed for a node", good: "the journal is sealed\nbox.Seal(b)",
		files: map[string]string{"broker/wrapsecret.go": "the key derives from the words"},
	},

	// Constructions.
	{
		pattern: `\b(one|One) \w+ an? (append|batch|client|commit|connection|entry|file|group|key|line|message|node|partition|process|replica|request|run|test|transaction)\b`,
		instead: "one ... per ...",
		legit:   `\b[oO]ne (opens|to|in|of|that) an? `,
		bad:     "One journal a node\none goroutine a partition", good: "one opens a node",
	},
	{
		pattern: `\b(for|by|of|to|from|with|and|or|than|as|but|is|are|until|when|if|after|before|because) who\b|[.;:)] who \w|([.;:)] |// |# |")Who \w|"who \w`,
		instead: "a noun: whoever, the client that, the node that",
		legit:   `\b[wW]ho\b[^.;?]*\?|\| who \w+ \||"who \w+", |\bwho, err\b`,
		bad:     "an API for who cannot wait\nby who sends it\n// Who waits is served in turn.\nit ends; who waits gets an error",
		good:    "Who wrote it?\na client who asks\nthose who know\nanyone who can publish",
	},
	{
		pattern: `\b[tT]ell(s|ing)? (whether|if)\b|// \w+ tells [^.\n]{1,40} whether\b`, instead: "reports whether",
		legit: `can'?(not|t)? (always )?tell (whether|if)`,
		bad:   "isOpen tells whether it is open\n// exists tells for each path whether it is there", good: "a reader can tell whether it has everything",
	},
	{
		pattern: `// [a-zA-Z]\w*(, [^,.]*,)? gives (the|how|what|who|when|whether|its|up to|an? \w+ (that|for|of|in|by|from))\b|\b(and|it|; it|that) gives (how|what|who|its payloads|the (txid|payload|error|answer|longest|address|digest)\w*)\b`,
		instead: "returns",
		legit:   `gives the [^.\n]{1,40} to (the|a|its|each)\b`,
		bad:     "// size gives the size\nload appends; it gives how many", good: "// promote gives a vote to a member\nif Badger gives its disk space back",
	},
	{
		pattern: `// (Test|check|must|want|same)\w* wants\b`, instead: "checks that",
		bad: "// checkSent wants the headers back", good: "a reader wants the newest",
	},
	{
		pattern: `\bhung up\b|\bhang(s|ing)? up\b|\b[bB]efall`, instead: "closes the connection; happens to",
		bad: "it hangs up on it\nwhat befalls a node",
	},
	{
		pattern: `\b[aA]s of (a|an|the|who|what|its|their|each)\b`, instead: "as for, the same as, like; at",
		legit: `as of (a|the) (second ago|version|moment|time)`,
		bad:   "errors are as of a batch", good: "as of a second ago",
	},
	{
		pattern: `\bso many\b`, instead: "a number: n, this many, that many",
		legit: `(?:not|are|were|be|in) so many\b|so many [^.]{1,60}\bthat\b`,
		bad:   "it takes so many bytes\nno more than so many",
		good:  "there are not so many\nso many keys that some share a hash",
	},
	{
		pattern: `\b[lL]ook(s|ed|ing)? whether\b|\bsee(s|n)? to it that\b|\bbring(s)? about\b|\bfor want of\b|\btakes? account of\b|\blook(s)? (again )?who\b`,
		instead: "checks whether, ensures that, causes, for lack of, without, considers",
		bad:     "it looks whether there is room\nsees to it that it is there\nfor want of an answer",
	},
	{
		pattern: `\b[wW]hat stands\b|\bstands? in (the|one|a|no|it|each|Badger's)\b|\bnumbers stand\b`, instead: "is in",
		legit: `\bstands? in (the|each other's|the other's) way\b`,
		bad:   "What stands in the block\nit stands in the code", good: "they cannot stand in for it\nit must not stand in the way",
	},
	{
		pattern: `\b[oO]f before\b|\bnodes? of before\b`, instead: "earlier, older, before it",
		legit: `\bof before (the|a|an|it|its|that|this|they|he)\b`,
		bad:   "Nodes of before cut at fewer",
	},
}

// notChecked are the files and folders that may use retired words.
var notChecked = map[string]string{
	"CHANGELOG.md":                "it names what was renamed",
	"docs/performance-history.md": "it is a diary, in the words of its days",
	"words_test.go":               "it has the list",
}

// space matches a space of a pattern in the text of a file.
const space = `(?:[ \t]+|[ \t]*\r?\n[ \t]*(?:(?://|#|\*|>)[ \t]*)?)`

// compile returns the regular expression of a pattern.
func compile(pattern string) *regexp.Regexp {
	var b strings.Builder
	class := false
	for i, r := range pattern {
		switch {
		case r == '[' && (i == 0 || pattern[i-1] != '\\'):
			class = true
		case r == ']':
			class = false
		case r == ' ' && !class:
			b.WriteString(space)
			continue
		}
		b.WriteRune(r)
	}
	return regexp.MustCompile(`(?m)` + b.String())
}

// finder finds one retired word.
type finder struct {
	retired
	pattern, legit *regexp.Regexp
}

func finders() (all []finder) {
	for _, r := range retiredWords {
		f := finder{retired: r, pattern: compile(r.pattern)}
		if r.legit != "" {
			f.legit = compile(r.legit)
		}
		all = append(all, f)
	}
	return all
}

// find returns where in a text the word is used.
func (f finder) find(text []byte) [][]int {
	all := f.pattern.FindAllIndex(text, -1)
	if f.legit == nil || len(all) == 0 {
		return all
	}
	legit := f.legit.FindAllIndex(text, -1)
	return slices.DeleteFunc(all, func(at []int) bool {
		return slices.ContainsFunc(legit, func(l []int) bool { return l[0] < at[1] && at[0] < l[1] })
	})
}

// TestNoRetiredWords looks for words and constructions that the project no
// longer uses.
func TestNoRetiredWords(t *testing.T) {
	files := proseFiles(t)
	if len(files) < 400 {
		t.Errorf("%d files: the test would see little", len(files))
	}
	all := finders()
	var needed sync.Map // the exceptions that were needed
	var checks errgroup.Group
	checks.SetLimit(runtime.GOMAXPROCS(0))
	for _, path := range files {
		checks.Go(func() error {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, f := range all {
				for _, at := range f.find(text) {
					if _, stays := f.files[path]; stays {
						needed.Store(f.instead+path, true)
						continue
					}
					line := 1 + bytes.Count(text[:at[0]], []byte("\n"))
					t.Errorf("%s:%d: %q is retired: write %s", path, line, text[at[0]:at[1]], f.instead)
				}
			}
			return nil
		})
	}
	if err := checks.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		for path := range f.files {
			if _, is := needed.Load(f.instead + path); !is {
				t.Errorf("%s no longer needs an exception: it has nothing to write as %s", path, f.instead)
			}
		}
	}
}

// proseFiles returns the files that are read by people, and checked.
func proseFiles(t *testing.T) (files []string) {
	t.Helper()
	kinds := []string{".go", ".md", ".txtar", ".txt", ".sh", ".d2", ".yml"}
	if err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if slices.Contains([]string{".git", "node_modules", "fuzz"}, entry.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		if !slices.Contains(kinds, filepath.Ext(path)) && path != "Makefile" && filepath.Dir(path) != ".ci" {
			return nil
		}
		for name := range notChecked {
			if path == name || strings.HasSuffix(name, "/") && strings.HasPrefix(path, name) {
				return nil
			}
		}
		files = append(files, path)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return files
}

// TestRetiredWordsAreFound checks the patterns against their examples.
func TestRetiredWordsAreFound(t *testing.T) {
	for _, f := range finders() {
		for bad := range strings.SplitSeq(f.bad, "\n") {
			if len(f.find([]byte(bad))) == 0 {
				t.Errorf("%q does not find %q", f.pattern, bad)
			}
			if broken := strings.ReplaceAll(bad, " ", "\n\t// "); !strings.HasPrefix(bad, "//") && !strings.Contains(bad, "(") && len(f.find([]byte(broken))) == 0 {
				t.Errorf("%q does not find %q over lines", f.pattern, bad)
			}
		}
		for good := range strings.SplitSeq(f.good, "\n") {
			if len(f.find([]byte(good))) > 0 {
				t.Errorf("%q finds %q", f.pattern, good)
			}
		}
	}
}
