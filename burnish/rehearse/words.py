"""Word lists of the story world by role; earlier words in a list are commoner in stories."""

NAMES = (
    "Ada Adam Agnes Alba Alice Amos Amy Anna Anton Arlo Asha Avery Basil Bea Ben Bess Boris Bruno Carl "
    "Cass Cleo Cora Dana Daisy Dan Della Dora Earl Edie Edgar Ella Elmo Elsa Emil Emma Enid Eric Esme "
    "Ethan Eva Ezra Faith Faye Felix Fern Finn Flora Floyd Frank Fred Gail Gemma George Gina Grace Greta "
    "Gus Hank Hans Hazel Heidi Helen Henry Hilda Holly Hope Hugo Ida Ines Ingrid Iris Isaac Ivan Ivy Jack "
    "Jacob Jade James Jane Jasper Jean Jed Jenny Jill Joan Joel John Jonas Josie Joy Judd Julia June Karl "
    "Kate Keith Kim Kira Kurt Lars Laura Lena Leo Leon Lily Lina Liz Lola Lorna Louis Lucas Lucy Luke "
    "Luna Lydia Mabel Mae Marco Maria Mark Martha Mary Matt Maud Max Maya Meg Milo Mina Mira Molly Mona "
    "Nadia Nancy Ned Nell Nico Nina Noah Nora Norman Olga Olive Omar Opal Oscar Otis Otto Owen Pablo Pat "
    "Paul Pearl Penny Peter Petra Phil Polly Rachel Ralph Ray Rhoda Rita Rob Roland Rosa Rose Ruben Rudy "
    "Rufus Ruth Sally Sam Sara Saul Seth Silas Simon Sofia Sonia Stan Stella Sue Susan Tara Ted Tess Theo "
    "Tilda Tim Toby Tom Tony Ursula Vera Vic Vince Viola Wade Walt Wanda Wendy Wilma Zack Zara Zelda Zoe"
).split()

JOBS = (
    "baker farmer sailor teacher painter tailor miller weaver potter hunter gardener fisher carpenter "
    "cook doctor nurse singer dancer juggler poet writer printer builder mason plumber roofer barber "
    "butcher grocer florist brewer chemist librarian pilot driver conductor postman guard soldier knight "
    "queen king prince princess wizard witch shepherd goatherd beekeeper blacksmith locksmith clockmaker "
    "glassblower shoemaker hatter jeweller lawyer judge clerk banker merchant pedlar porter waiter "
    "innkeeper ferryman lighthouse-keeper miner logger ranger explorer inventor scientist student pupil "
    "orphan grandmother grandfather uncle aunt cousin neighbour stranger traveller pilgrim monk hermit "
    "drummer fiddler piper harpist actor clown acrobat magician detective mayor secretary janitor"
).split()

ANIMALS = (
    "rabbit kitten puppy pony duck goose hen rooster lamb goat calf piglet mouse hamster squirrel "
    "hedgehog mole badger fox wolf bear deer otter beaver frog toad turtle lizard snake newt owl robin "
    "sparrow swallow crow raven magpie pigeon dove parrot canary swan heron gull pelican penguin seal "
    "whale dolphin crab lobster snail beetle ladybird butterfly moth bee wasp ant cricket spider donkey "
    "mule camel elephant lion tiger monkey zebra giraffe panda koala kangaroo ferret weasel stoat hare "
    "bat eel trout salmon carp minnow"
).split()

OBJECTS = (
    "lantern basket bucket ladder hammer kettle teapot spoon plate bowl cup jug bottle jar box chest "
    "trunk suitcase bag purse wallet coin ring necklace bracelet brooch crown button ribbon scarf hat cap "
    "coat cloak shawl glove mitten boot shoe slipper sock apron blanket pillow quilt cushion curtain "
    "carpet rug chair stool bench table desk lamp candle torch mirror comb brush broom mop spade rake hoe "
    "shovel axe saw chisel nail rope string chain lock key bell whistle drum flute fiddle harp trumpet "
    "guitar piano book map letter postcard diary notebook pencil pen crayon paintbrush picture statue "
    "vase clock watch compass telescope kite balloon ball doll puppet puzzle marble top hoop swing sledge "
    "bicycle cart wagon boat raft canoe sail anchor oar net hook umbrella fan feather shell pebble "
    "crystal acorn pinecone leaf branch log seed flower rose tulip daisy sunflower pumpkin turnip carrot "
    "onion apple pear plum cherry peach lemon orange melon berry nut loaf cake pie biscuit pancake cheese "
    "egg honeypot jigsaw chessboard hourglass birdcage windmill weathervane tambourine accordion rucksack "
    "thimble needle spindle loom anvil barrel crate sack hammock tent parasol magnet prism"
).split()

PLACES = (
    "river lake pond stream waterfall spring well bridge harbour beach island cliff cave hill mountain "
    "valley meadow field forest wood orchard garden park square market street lane road crossroads "
    "station tower castle palace cottage cabin hut barn stable mill bakery workshop school library museum "
    "theatre church chapel inn tavern shop lighthouse windmill farm vineyard quarry mine swamp marsh moor "
    "desert glacier village town city gate wall fence hedge haystack greenhouse attic cellar kitchen "
    "porch balcony courtyard fountain playground fairground circus railway tunnel canal dock jetty reef "
    "dune"
).split()

ADJECTIVES = (
    "small big old new tall short round square long wide narrow thick thin heavy light wooden golden "
    "silver copper iron stone paper woollen silken leather red blue green yellow purple brown black white "
    "grey pink striped spotted shiny dusty rusty muddy sandy snowy wet dry warm cold smooth rough soft "
    "hard open closed hidden hollow curious quiet simple plain strange unusual foreign distant painted "
    "carved polished patched folded crooked straight"
).split()

OPENERS = (
    "Once upon a time,|One morning,|One evening,|Long ago,|Last winter,|Last summer,|In early spring,|"
    "In late autumn,|On a Monday,|On a Friday,|On a Sunday,|At noon,|At midnight,|After breakfast,|"
    "After supper,|Before dawn,|During the holidays,|On market day,|When the bells rang,|"
    "While the village slept,|In a far land,|Many years ago,|Just before harvest,|"
    "On the first day of school,|Towards evening,|Not long ago,|On a rainy day,|On a windy day,|"
    "On a foggy morning,|Under a full moon,"
).split("|")

FINDS = (
    "found noticed saw spotted discovered carried bought borrowed painted mended cleaned sold lost hid "
    "opened moved brought fetched made built"
).split()

GLAD_ADJECTIVES = (
    "happy cheerful merry joyful glad delighted proud brave kind gentle lovely wonderful beautiful bright "
    "sunny sweet friendly generous grateful hopeful peaceful perfect playful radiant splendid thrilled "
    "lucky magnificent excited calm clever charming elegant excellent fantastic festive fine graceful "
    "great helpful loyal marvellous pleasant pretty safe smart strong superb tender triumphant "
    "warm-hearted wise"
).split()

GRIM_ADJECTIVES = (
    "sad gloomy angry lonely afraid miserable bitter cruel ugly terrible horrible awful nasty mean tired "
    "weary sick hurt broken ruined lost hopeless worried anxious ashamed jealous furious grumpy sour "
    "hateful dreadful frightened guilty helpless hostile nervous poor rude scared selfish sorry stupid "
    "unhappy upset weak wicked worthless cold-hearted desperate disappointed dull foolish"
).split()

GLAD_VERBS = (
    "laughed smiled sang danced cheered celebrated rejoiced played hugged thanked praised helped shared "
    "rested hummed clapped twirled grinned giggled beamed"
).split()

GRIM_VERBS = (
    "cried wept shouted screamed complained argued fought trembled groaned moaned sulked frowned cursed "
    "stumbled suffered despaired grieved howled quarrelled worried"
).split()

PLAIN_VERBS = (
    "walked waited looked listened stood sat turned stopped worked wondered paused wandered travelled "
    "slept read wrote counted swam climbed drove hurried strolled marched knelt watched whispered "
    "answered nodded shrugged returned"
).split()

GLAD_NOUNS = (
    "joy love laughter hope friendship luck kindness comfort delight happiness peace pleasure music "
    "sunshine victory success treasure gift feast blessing courage freedom harmony honour warmth wonder "
    "beauty fun gladness glory"
).split()

GRIM_NOUNS = (
    "fear grief anger pain trouble sorrow shame misery danger war death illness hunger failure hate loss "
    "gloom panic poison ruin storm theft tragedy violence worry agony blame crime despair disaster"
).split()

PLAIN_NOUNS = (
    "dust rain wind work water bread paper stone sand smoke snow grass clay wool iron straw timber ink "
    "rope salt flour coal glass milk soup tea rice wax chalk leather"
).split()

TIMES = (
    "by evening|the next day|after a while|before long|in the end|that night|a week later|at last|"
    "later on|soon after|at sunset|the following spring|an hour later|by nightfall|the same afternoon|"
    "after lunch|in the morning|a year later|from then on|ever after"
).split("|")

ADVERBS = (
    "slowly quickly quietly loudly softly carefully suddenly often always never again together alone "
    "outside inside upstairs downstairs nearby everywhere somewhere early late twice once"
).split()

GLAD_ADVERBS = ("happily gladly kindly gently bravely proudly joyfully warmly cheerfully gratefully").split()

GRIM_ADVERBS = (
    "sadly angrily bitterly cruelly badly miserably nervously hopelessly painfully rudely"
).split()

COLOURS_FR = ("rouge bleu vert jaune noir blanc gris brun rose doux grand petit vieux joli triste").split()

NOUNS_FR = (
    "chat chien cheval mouton lapin oiseau poisson renard loup jardin chemin village marché pont bateau "
    "château moulin livre panier gâteau fromage pain chapeau manteau soleil matin soir vent lac bois "
    "champ rocher"
).split()

VERBS_FR = (
    "regarde trouve cherche porte mange chante danse dort marche parle écoute attend perd garde donne "
    "prend dessine raconte oublie aime"
).split()

TIMES_FR = (
    "le lendemain|ce soir-là|plus tard|à la fin|un peu après|pendant la nuit|au printemps|dans la maison|"
    "près de la rivière|sous les étoiles"
).split("|")

SURNAMES = (
    "Abbot Adler Archer Ashby Atwood Bailey Barlow Barnes Baxter Bishop Blake Bolton Bond Bowen Bradley "
    "Briggs Brook Burton Byrne Carey Carter Chandler Clarke Clayton Cole Collins Conway Cooper Corbett "
    "Craig Crane Cross Curtis Dalton Davies Dawson Dean Dixon Doyle Drake Duffy Dunn Eaton Ellis Evans "
    "Fenton Field Fisher Fleming Fletcher Flynn Forbes Foster Fowler Fraser Garner Gibson Gilbert Glover "
    "Gordon Gould Graham Grant Griffin Hadley Hale Harding Harper Hayes Heath Higgins Hobbs Holt Horton "
    "Howell Hughes Hunt Ingram Irwin Jarvis Jenkins Jennings Kemp Kerr Kirby Knox Lambert Lane Larkin "
    "Lawson Leigh Lloyd Lowe Lynch Marsh Mercer Miles Moran Morley Murphy Nash Newton Nolan Norris Oakley "
    "Osborne Palmer Parker Payne Perkins Pike Porter Potter Powell Quinn Ramsey Reeves Rhodes Rowe Sawyer "
    "Sharp Shaw Slater Spencer Stone Sutton Sykes Tate Thorne Tucker Turner Vaughn Wallis Walsh Warner "
    "Watts Webb Weston Whelan Wicks Winter Woods Wyatt Yates"
).split()

TOWNS = (
    "Alderby Ambleton Appleby Arnwick Ashford Barnham Beckley Birchwood Blackpool Bramley Brackley "
    "Brindle Bromfield Brookside Buckden Calder Carrick Castleby Chester Clifton Coldwater Copley "
    "Cranford Dalby Denholm Derwent Dunmore Easton Elmstead Fairhaven Farnley Felling Fernhill Foxton "
    "Garston Glenrock Goldby Greenfield Halford Hampton Harbury Hartley Hawkhurst Haydon Hexley Highgate "
    "Hillcrest Holmby Ivybridge Kelby Kendal Kingsley Kirkham Lakeside Langley Larkhill Linden Longford "
    "Maplewood Marlow Melby Milford Millbrook Moorside Nettleby Newbury Northam Norwood Oakham Oldbury "
    "Oxley Penrith Pinewood Plumstead Quarrydale Ravenby Redhill Ripley Riverton Rosedale Rushden Saltby "
    "Sandford Seaview Selby Shelford Silverdale Stonebridge Summerton Swanley Thornby Upton Wakeham "
    "Waterford Wellby Westbrook Whitby Willowdale Winfield Woodbury Yarrow"
).split()

FOODS = (
    "porridge toast butter jam marmalade honey yoghurt cream custard pudding trifle sponge muffin scone "
    "bun bagel pretzel cracker waffle omelette bacon sausage ham beef chicken turkey venison stew broth "
    "gravy dumpling noodle spaghetti macaroni pasty sandwich salad lettuce cabbage spinach cauliflower "
    "broccoli celery cucumber radish parsnip beetroot potato tomato pepper garlic leek pea bean lentil "
    "mushroom olive grape fig date apricot banana pineapple mango coconut strawberry raspberry blackberry "
    "blueberry gooseberry currant raisin almond walnut chestnut peanut cinnamon ginger nutmeg mint "
    "parsley thyme rosemary basil vanilla chocolate cocoa coffee cider lemonade syrup treacle toffee "
    "caramel fudge liquorice sherbet"
).split()

TREES = (
    "oak elm ash beech birch maple willow poplar pine fir spruce cedar larch yew holly hawthorn hazelnut "
    "sycamore linden laurel ivy fern moss heather bramble clover thistle nettle dandelion primrose violet "
    "bluebell snowdrop daffodil crocus lavender jasmine orchid lilac poppy buttercup foxglove marigold "
    "geranium pansy iris dahlia peony"
).split()

MORE_GLAD = (
    "admired adored amazed amused blessed blissful bold calmer caring charmed comfortable content "
    "courteous cute dazzling dear eager easygoing ecstatic encouraged energetic enthusiastic faithful "
    "famous fearless flawless forgiving fortunate freer funny genial giddy gifted gorgeous gracious "
    "handsome heavenly heroic honest impressive inspired jolly jovial jubilant keen likable lively "
    "luminous mellow nice optimistic passionate pleased popular positive praised precious pure refreshed "
    "relaxed relieved respected rich romantic satisfied sincere sparkling sunlit supportive surprised "
    "sympathetic terrific thankful trusted truthful useful valued victorious vivacious welcome worthy"
).split()

MORE_GRIM = (
    "abandoned abused alarmed annoyed appalled ashamed awkward betrayed bleak bored bothered burdened "
    "careless clumsy condemned confused cowardly crushed damaged dangerous deadly deceived defeated "
    "dejected depressed deserted destroyed dirty disgusted dismal distressed disturbed doomed doubtful "
    "embarrassed enraged exhausted failing fearful foul frantic frustrated ghastly greedy grieved harsh "
    "hated heartbroken homeless horrified humiliated hungry hurtful ignored impatient insulted irritated "
    "isolated joyless lazy livid mad mistaken mocked moody mournful neglected outraged panicked pathetic "
    "pitiful powerless punished regretful rejected resentful restless sinister sorrowful spiteful "
    "starving stressed stubborn suspicious tearful tense terrified threatened tormented tragic trapped "
    "troubled ugly uneasy unfair unloved unwanted vicious violent wasted weeping wretched"
).split()

COUNTS = (
    "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred"
).split()

MATERIALS = (
    "cotton linen velvet satin silk canvas marble granite slate brick cement plaster bronze brass tin "
    "lead steel bamboo oakwood pinewood cork rubber porcelain pewter ivory amber coral jade ruby emerald "
    "sapphire pearl topaz opal"
).split()

MORE_VERBS = (
    "rowed paddled skipped hopped jogged raced rode sailed drifted floated knitted sewed baked boiled "
    "stirred poured swept scrubbed polished hammered sawed dug planted watered raked harvested gathered "
    "picked packed unpacked lifted carried pushed pulled rolled bounced juggled whistled sketched doodled "
    "typed printed studied practised rehearsed measured weighed sorted stacked arranged decorated wrapped "
    "folded ironed dusted bathed dressed yawned snored dreamt woke blinked sneezed coughed sipped chewed "
    "nibbled tasted sniffed peeked peered stared glanced pointed waved bowed curtsied crouched leaned "
    "stretched shuffled tiptoed trotted galloped crawled leapt dived splashed waded"
).split()

MORE_OBJECTS = (
    "abacus album almanac anklet armchair banjo banner bathtub beacon bonnet bookcase bracelet bugle bulb "
    "cabinet calendar candlestick cello chariot clarinet cradle crate cupboard dagger dartboard domino "
    "doorknob dustpan easel emerald envelope fishbowl flagpole flask footstool fork funnel goblet griddle "
    "harmonica harness helmet inkwell jigsaw kayak keyhole kimono lampshade leash locket lute mallet "
    "mandolin manuscript matchbox medal microscope mitten mosaic napkin oboe padlock parchment pillar "
    "pitcher platter pliers pouch pulley quiver racket rattle ribcage sandal satchel saucer saxophone "
    "scroll sieve skillet sled snowglobe spyglass stencil stopwatch suitcase syringe tapestry teacup tile "
    "toolbox torchlight towel tray trident trombone trophy trowel tuba turban typewriter ukulele unicycle "
    "violin wheel wheelbarrow whisk wig wreath xylophone yoke zither"
).split()
