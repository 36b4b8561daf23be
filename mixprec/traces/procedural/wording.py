"""How reasoning sounds: templates (``grammar.spoken``) for what isn't about one problem alone, by behaviour.

Slots: ``<task>`` (a verb: 'find the sum'), ``<topic>`` (a noun: 'the sum'), ``<way>`` (a verb: 'count the opposite'),
``<fact>``, ``<step>``, ``<wrong>`` (what was wrong), ``<case>`` and ``<outcome>`` of a tried example, ``<given>``,
``<answer>``.
"""

from __future__ import annotations

_HUM = "{Okay|Alright|All right|Right|Hmm|Hmm, okay|Well|Ok|Okay, so|So|Alright, so|Okay, let's see|Let's see}"
_WAIT = (
    "{Wait|Hold on|Hmm, wait|No, wait|Wait, no|Wait a {second|minute|moment}|But wait|Hmm|Hmm, no|Oh wait|Actually|"
    "Actually, no|Hmm, hold on|But hold on|Oh, hold on}"
)
_AGAIN = (
    "{start {over|again}|go back{| a step| to {the beginning|what is given}}|redo {this|that|that part}|try {again|"
    "something else|another {way|approach|route}|a different {approach|way|angle|idea}}|rethink {this|that|it}|"
    "reconsider{| this| that}|re-examine {this|that|the last step}|backtrack|take a step back|look at {this|it} afresh|"
    "recheck {that|this|the last step}|do that {again|once more|over}}"
)
_OTHER = "{Alternatively|Instead|On second thought|As an alternative|Or rather|Then again}"

INITIALIZING = (
    f"{_HUM}, {{so |}}{{I need to|I have to|I want to|I should|I must|I'm supposed to|I'm asked to|I'm trying "
    f"to|I'm going to|"
    "we need to|we have to} <task>.{| Let me {think|see|break {it|this} down|think {about|through} {it|this}{| "
    "carefully| step by step}}.}",
    f"{_HUM}, {{the {{question|problem|task|puzzle}} {{asks|wants}} me to|I've been {{asked|given the task}} to|my "
    "{job|task|goal} is to|what {I|we} {need|have} to do is|the {goal|aim} is to} <task>.",
    f"{_HUM}, let me {{try to {{understand|figure out|work out|see}}|start with|first think about|begin with}} "
    f"what I have "
    "{here|to do}: I {need|want|have} to <task>.",
    "{First|To start|To begin with|Before anything else}, {let me|I'll|I should} {restate|rephrase|write down|go over|"
    "sort out|lay out} {the {problem|question|task}|what is {given|known|asked}}{| in my own words}.",
    "{Let me|Let's|I'll} {start|begin} by {looking at|reading|going through|listing|collecting|writing down} {what I "
    "{have|know}|the {information|facts|details|clues}|everything that's given}{| carefully|, one by one|}.",
    "{How|Where} {do|should|can|could} I {start|begin|approach {this|it}|go about {this|it}}?",
    "{So|Okay, so|Alright, so} {this is about|we're dealing with|it all comes down to} <topic>.",
    "{Let me|Let's} {break {it|this} down|take it {one step at a time|slowly|step by step}|try to {parse|picture|"
    "organise|visualise} {this|it|the problem}}.",
)

DOUBT = (
    "{Hmm|Hmm, wait|Wait}, {I'm|I am} not {so|entirely|quite|completely|really|100%|totally|} {sure|certain|convinced} "
    "{about {that|this|it}|that {this|that|it} is {right|correct|true}|whether that's {right|correct|enough|allowed}}.",
    "{But |Hmm, |}{is|was} {that|this} {right|correct|really {so|true|enough}|actually {right|the case}|all{| "
    "there is}}?",
    "{I {wonder|ask myself} {if|whether}|I'm {wondering|unsure|not sure} {if|whether}|It is {unclear|not clear} "
    "whether} {I {missed|overlooked|forgot|misread} something|{there's|there is} {a catch|more to it|another "
    "possibility}|{this|that} {holds|works} in {every case|general}}.",
    "{Maybe|Perhaps} {I'm {missing something|wrong|overthinking {this|it}|misreading {the question|it|this}|getting "
    "{confused|mixed up}}|I {misunderstood|misread|forgot} something|there's {more to it|a trick|something else}}.",
    "{This|That|It} {is|seems|looks|feels} {a bit|kind of|a little|somewhat|rather|quite|really|too} "
    "{confusing|tricky|odd|"
    "strange|off|suspicious|simple|easy|complicated|ambiguous|vague|messy}.",
    "{I {might|may|could} {be wrong|have made a mistake|be mistaken|have missed something|be overlooking something}"
    "{| here| there|, though}}.",
    "{I think|I believe|I guess|I suppose|I'd say|I'm inclined to say} {that's|this is|it's} "
    "{right|correct|it|fine|okay},"
    " {but {I'm not {sure|certain|positive}|I can't be {sure|certain}|let me be careful|I have my doubts|I could be "
    "wrong|who knows}|though I wouldn't {bet|swear} on it}.",
    "{Am I|Could I be|Did I} {missing|overlooking|forgetting} {something|anything|a case}{| here}?",
    "{Does {that|this} {make sense|add up|hold|hold in general}|How can I be sure{| of {that|this}}|What if I'm "
    "wrong|What "
    "if {that|this} isn't {true|so}|Why {would|should} {that|this} be {so|true}|Can {that|this} be {right|true}}?",
    "{I'm|I am} {fairly|pretty|quite|reasonably|rather|almost|now|more or less} {sure|certain|confident|convinced} "
    "{about {this|that|it}|that {this|that|it} is {right|correct|true}|of {this|that|it}|now}.",
    "{I'm|I am} {a bit|a little|somewhat|slightly|kind of|really} {stuck|confused|unsure|worried|lost|torn|nervous|"
    "hesitant|uncertain} {here|now|about {this|that|the last step}}.",
    "{Hmm|Hmm, this is {tricky|hard}|Hmm, I don't know|I don't know|Not sure|Tricky|Hmm, that's a {tough|good} "
    "question}.",
    "{It|That} {might|may|could} {be {right|the answer|possible|a coincidence|a trap}|work|fit}, {but I "
    "{can't|cannot} {tell"
    "|say|prove it|be sure}{| yet}|but {that's|it's} {just|only} a {guess|hunch|feeling}}.",
    "{I {don't|do not} {have|see} {enough {information|evidence|to go on}|a way to {verify|check} "
    "{this|that|it}}|I {can't|"
    "cannot} {verify {this|that}|confirm {this|that}|rule {this|that} out|recall {it|this} exactly|decide}}{| "
    "right now| here| at the moment}.",
    "{Either way|In any case|Still|So far}, I {feel {good|better|uneasy} about {this|it|that}|don't see {a {gap|flaw|"
    "problem|mistake}|what could be wrong|how {this|it} could fail}|have {some|no} doubts{| left| about it}}.",
)

#: Turning away from what was wrong, or from a way that leads nowhere.
BACKTRACK = (
    f"{_WAIT}, {{that's|that is|this is|it's}} {{not {{right|correct|what I {{want|need}}|how it works|the whole "
    f"story}}"
    f"|wrong|a mistake|nonsense|incorrect}}{{|, because <wrong>| since <wrong>|: <wrong>}}.",
    f"{_WAIT}, {{that|this}} {{can't|cannot|couldn't}} be {{right|true|correct}}{{|, {{because|since|as}} <wrong>}}.",
    f"{_WAIT}, I {{made|think I made|must have made|just made|may have made}} {{a mistake|an error|a slip|a "
    f"wrong turn}}"
    f"{{| there| here}}{{|: <wrong>}}. {{Let me|I'd better|I'll|I should|I have to|I need to}} {_AGAIN}.",
    f"{_WAIT}, <wrong>{{, so {{let me|I'd better|I'll|I should|I have to|I need to}} {_AGAIN}|, so that {{line|idea|"
    f"approach|attempt}} {{fails|is {{out|wrong|dead}}|won't work|doesn't work}}|}}.",
    "{I {messed|mixed} {that|this|something} up|I went wrong {there|somewhere}|I {forgot|overlooked} "
    "something|"
    "I was too {quick|hasty}|Scratch that|No}{, because|:|, as} <wrong>.",
    f"{{So {{that|this}} {{doesn't|won't}} work|That's a dead end|That {{leads|led}} nowhere|This isn't "
    f"{{working|going "
    f"anywhere}}|I got that wrong}}, {{and|so}} {{I need to|I have to|I'll|I should|let me}} {_AGAIN}.",
)
BACKTRACK_TO = (
    f"{_OTHER}, {{maybe |perhaps |}}{{I {{could|can|might|should}}|it's {{better|easier|simpler}} to|let me|why "
    f"not}} <way>.",
    "{Maybe|Perhaps} {I should|I can|it's {better|easier|simpler|smarter} to|a {better|cleaner|different|simpler} {way|"
    "approach|idea} {is|would be} to} <way>{| instead|, rather than {going on like this|what I've been doing}}.",
    "{Another|A different|A second|One more} {approach|way|method|idea|option|strategy} {is|would be|might "
    "be|could be} to <way>.",
    "{Okay, |Hmm, |}{let me|let's|I'll|I'd rather} {try {another|a different|one more} "
    "{approach|way|angle|route|method}|"
    "{think|look} {differently|about it differently|at it from another {side|angle}}|change {course|tack|my approach}|"
    "switch to {another|a different} {method|plan}}{|: <way>| and <way>}.",
    "{Rather than|Instead of} {going on like this|doing it that way|grinding through this}, {I'll|I could|let "
    "me|I should} <way>.",
    f"{_WAIT}, {{maybe|perhaps}} I should <way>{{| instead}}.",
    "{I was going to|I started to|My {first|initial} {idea|plan} was to} {go on like that|do it by brute "
    "force|do it directly},"
    " but {it's|it is} {better|easier|safer} to <way>.",
)

EXAMPLE = (
    "{Let me|Let's|I'll|I can|We can} {test|check|verify|try|confirm} {this|that|it} {with|on|for|using} <case>: "
    "<outcome>.",
    "{For {example|instance}|As an example|Say|Suppose|To see this|To illustrate}, {take|with|consider|try} "
    "<case>: <outcome>.",
    "{Take|Try|Consider|Let me try|Let's try|Let me take|Suppose we {take|have}|What about|How about} "
    "<case>{.|,|:} <outcome>.",
    "{Checking|Testing|Trying|Plugging in|A quick {check|test} with|As a {sanity check|test}, with|Just to "
    "test,} <case>: <outcome>.",
    "{If {I|we} {take|try|plug in|use|pick}|With|For|In the case of} <case>, <outcome>.",
)
EXAMPLE_HOLDS = (
    "{That|This|It} {works|checks out|fits|matches|holds|agrees}{| too| as well}.",
    "{Good|Great|Okay|Perfect|Nice|Yes|Right}{|, {that|it} {works|fits|matches}|, as it should be}.",
    "",
    "",
)
EXAMPLE_FAILS = (
    "{So|Hence|Thus} {{that|this|it} {fails|is out|is impossible|doesn't work|can't be}|no}.",
    "{No|Nope}{|, {that|this} {doesn't fit|is impossible|won't do}|, not {this|that} one}.",
    "",
    "",
)

KNOWLEDGE = (
    "{I {remember|recall|know}|I {remember|recall} from {school|class|textbooks}|From what I "
    "{know|recall|remember}, it's so|"
    "We know|It's {well known|a known fact}|As far as I {know|remember|recall}, it holds|Recall|Remember|Note} "
    "that <fact>.",
    "{In general|By definition|As is well known|It's known that|As a rule}, <fact>.",
    "<fact>.",
    "<fact>.",
    "<fact>.",
    "{There's|There is} a {rule|fact|known fact|formula|result} for {this|that}: <fact>.",
    "{Also|And|Now|Besides}, <fact>.",
)
GIVEN = (
    "{The {problem|question|text|statement|puzzle} {says|states|tells {me|us}|mentions}|{We're|I'm} "
    "{told|given}|It's given|"
    "It {says|is stated}} that <given>.",
    "{According to|By|From} the {problem|statement|text|{first|second|third|last} {clue|condition|premise}}, <given>.",
    "{First|Next|Then|Also|And|Finally}, <given>.",
    "<given>.",
)

STEP = (
    "{So|Then|Now|Thus|Therefore|Hence|Next|And so|So then|Now then}{,|} <step>.",
    "<step>.",
    "<step>.",
    "{That|This|Which} {means|gives|tells me|implies|shows} that <step>.",
    "{It follows|From this I see|We {get|see|conclude}|I {get|see|conclude|find}} that <step>.",
    "{Okay, so|Alright, so|Right, so|Good, so} <step>.",
    "{Since that's settled|With that|From there|Putting that together}, <step>.",
)
CONCLUDE = (
    "{So|Therefore|Thus|Hence|So, in conclusion|Putting it {all|} together|In the end|Altogether}, {the "
    "{answer|result} {is|"
    "should be|must be|comes out as}|{I|we} get|it's} <answer>.",
    "{That {gives|leaves|makes}|So that's|So it's|So I'd answer|So the final answer is|This leaves} <answer>.",
    "{The answer is|My answer is|I'll go with|I'm going with} <answer>.",
)
